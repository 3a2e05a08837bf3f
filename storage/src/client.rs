//! The HTTP client that stores are reached with: reqwest over rustls, with the cryptography and the certificates that `ureq` uses.
//!
//! `object_store` would build a client of its own with aws-lc-rs, a second cryptographic library in C.

use std::sync::Arc;
use std::time::Duration;

use object_store::ClientOptions;
use object_store::client::{ClientConfigKey, HttpClient, HttpConnector};
use rustls::{ClientConfig, RootCertStore};

use crate::settings::is_true;

/// Idle connections that are kept; each request in flight has one of its own.
const IDLE: usize = 512;

/// A connection that carries nothing for this long counts as broken.
const SILENCE: Duration = Duration::from_secs(20);

/// Makes clients, for which the usual settings of timeouts hold.
#[derive(Debug)]
pub(crate) struct Connector;

impl HttpConnector for Connector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let broken =
            |source: Box<dyn std::error::Error + Send + Sync>| object_store::Error::Generic { store: "client", source };
        let seconds = |key: ClientConfigKey| {
            options.get_config_value(&key).and_then(|text| humantime::parse_duration(&text).ok())
        };
        let allow_http = options.get_config_value(&ClientConfigKey::AllowHttp).is_some_and(|value| is_true(&value));
        let mut builder = reqwest::Client::builder()
            .tls_backend_preconfigured(tls().map_err(|error| broken(error.into()))?)
            .https_only(!allow_http)
            .http1_only()
            .redirect(reqwest::redirect::Policy::none())
            .read_timeout(seconds(ClientConfigKey::ReadTimeout).unwrap_or(SILENCE))
            .pool_max_idle_per_host(IDLE)
            .user_agent(concat!("mr-mae/", env!("CARGO_PKG_VERSION")));
        if let Some(timeout) = seconds(ClientConfigKey::Timeout) {
            builder = builder.timeout(timeout);
        }
        if let Some(timeout) = seconds(ClientConfigKey::ConnectTimeout) {
            builder = builder.connect_timeout(timeout);
        }
        Ok(HttpClient::new(builder.build().map_err(|error| broken(error.into()))?))
    }
}

fn tls() -> Result<ClientConfig, rustls::Error> {
    let roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}
