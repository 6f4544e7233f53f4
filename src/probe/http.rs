//! `http`: one GET at the member's own address, judged by its status. Other kinds read a bounded body with the same care.
//!
//! Never: follows a redirect, uses a proxy, or reads more than it was told to.

use std::time::Duration;

use ureq::Body;
use ureq::http::Response;
use ureq::tls::{Certificate, ClientCert, PrivateKey, RootCerts, TlsConfig};
use zeroize::Zeroizing;

use super::wire::{self, Deadline, authority};
use super::{Evidence, Question, Tls};

pub(super) fn ask(question: &Question) -> Result<Evidence, String> {
    let path = question.path.as_deref().unwrap_or("/");
    let (url, response) = get(question, None, path, question.timeout)?;
    let status = response.status().as_u16();
    Ok(if status == question.status {
        Evidence::healthy()
    } else {
        Evidence::unhealthy(format!("{url} answers {status}, not {}", question.status))
    })
}

/// The body of a 200, of at most this many bytes.
pub(super) fn body(
    question: &Question,
    usual_port: u16,
    path: &str,
    deadline: Deadline,
    bytes_max: u64,
) -> Result<Vec<u8>, String> {
    let left = deadline.left().map_err(|error| error.to_string())?;
    let (url, mut response) = get(question, Some(usual_port), path, left)?;
    match response.status().as_u16() {
        200 => {
            response.body_mut().with_config().limit(bytes_max).read_to_vec().map_err(|error| format!("{url}: {error}"))
        }
        status => Err(format!("{url} answers {status}")),
    }
}

/// The URL, and what answers there; without a usual port, HTTP's own.
fn get(
    question: &Question,
    usual_port: Option<u16>,
    path: &str,
    within: Duration,
) -> Result<(String, Response<Body>), String> {
    let (scheme, port) = if question.tls.is_some() { ("https", 443) } else { ("http", 80) };
    let place = authority(&question.address, question.port.or(usual_port).unwrap_or(port));
    let url = format!("{scheme}://{place}{path}");

    let mut config = ureq::Agent::config_builder()
        .timeout_global(Some(within))
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
    Ok((url, response))
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
