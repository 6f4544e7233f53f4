//! A look at a server that was just connected to: does its version have known holes, and does it want certificates?
//!
//! Never: a reason to stop; what is found is told. Never: a request that changes something.

use std::time::Duration;

use etcd_client::{Client, Error};
use tokio::time::timeout;

use super::{Link, Vetted, holes, locked};

/// A server that does not answer these is asked again at the next connection.
const WITHIN: Duration = Duration::from_secs(2);

/// Once for each connection: what people should know of the server behind it.
pub(super) async fn vet(link: &Link, endpoint: usize) {
    if locked(&link.vetted)[endpoint].is_current {
        return;
    }
    let Ok(mut client) = link.client(endpoint).await else { return };
    // A newer server may keep its version from who has no right to it; then there is nothing to tell.
    let version = match timeout(WITHIN, client.status()).await {
        Ok(Ok(status)) => Some(status.version().to_owned()),
        Ok(Err(Error::GRpcStatus(_))) => None,
        _ => return,
    };
    let mut warnings = version.map(|version| holes::of_version(&version)).unwrap_or_default();
    if answers_strangers(link, endpoint).await {
        warnings.push("the store answers clients without a certificate: start etcd with --client-cert-auth".to_owned());
    }
    let now = Vetted { warnings, is_current: true };
    let before = std::mem::replace(&mut locked(&link.vetted)[endpoint], now.clone());
    for warning in now.warnings.iter().filter(|warning| !before.warnings.contains(warning)) {
        tracing::warn!(endpoint = link.server.endpoints[endpoint], "{warning}");
    }
}

/// Any answer will do, also a refusal: who is refused a request was let in.
pub(super) async fn answers_strangers(link: &Link, endpoint: usize) -> bool {
    let Ok(options) = link.options_of_a_stranger() else { return false };
    let ask = async {
        let mut client = Client::connect([&link.server.endpoints[endpoint]], Some(options)).await?;
        client.status().await
    };
    match timeout(WITHIN, ask).await {
        Ok(Ok(_)) => true,
        // Without a source it came from the server; with one, from the connection.
        Ok(Err(Error::GRpcStatus(status))) => std::error::Error::source(&status).is_none(),
        Ok(Err(_)) | Err(_) => false,
    }
}
