//! `http`: one GET at the member's own address, judged by its status.
//!
//! Never: follows a redirect, uses a proxy, or reads the body.

use ureq::tls::{Certificate, ClientCert, PrivateKey, RootCerts, TlsConfig};
use zeroize::Zeroizing;

use super::wire::{self, authority};
use super::{Evidence, Question, Tls};

pub(super) fn ask(question: &Question) -> Result<Evidence, String> {
    let (scheme, usual_port) = if question.tls.is_some() { ("https", 443) } else { ("http", 80) };
    let path = question.path.as_deref().unwrap_or("/");
    let place = authority(&question.address, question.port.unwrap_or(usual_port));
    let url = format!("{scheme}://{place}{path}");

    let mut config = ureq::Agent::config_builder()
        .timeout_global(Some(question.timeout))
        .max_redirects(0)
        .max_redirects_will_error(false)
        .http_status_as_error(false)
        .max_response_header_size(64 * 1024)
        .max_idle_connections(0)
        .proxy(None);
    if let Some(tls) = &question.tls {
        config = config.tls_config(tls_config(tls)?);
    }
    let response = config.build().new_agent().get(&url).call().map_err(|error| format!("{url}: {error}"))?;
    let status = response.status().as_u16();
    Ok(if status == question.status {
        Evidence::healthy()
    } else {
        Evidence::unhealthy(format!("{url} answers {status}, not {}", question.status))
    })
}

fn tls_config(tls: &Tls) -> Result<TlsConfig, String> {
    let roots = RootCerts::from(certificates(&tls.ca)?);
    let client = match (&tls.cert, &tls.key) {
        (Some(cert), Some(key)) => {
            let secret = Zeroizing::new(std::fs::read(key).map_err(|error| format!("{key}: {error}"))?);
            let secret = PrivateKey::from_pem(&secret).map_err(|error| format!("{key}: {error}"))?;
            Some(ClientCert::new_with_certs(&certificates(cert)?, secret))
        }
        _ => None,
    };
    Ok(TlsConfig::builder().root_certs(roots).client_cert(client).build())
}

fn certificates(path: &str) -> Result<Vec<Certificate<'static>>, String> {
    Ok(wire::certificates(path)?.iter().map(|certificate| Certificate::from_der(certificate).to_owned()).collect())
}
