//! The stores of this process, each opened once.

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::http::HttpBuilder;
use object_store::{ClientConfigKey, ClientOptions, ObjectStore, RetryConfig};

use crate::blocks::BlockCache;
use crate::client::Connector;
use crate::error::explain;
use crate::memory;
use crate::settings::{Settings, is_true};

/// The open stores by scheme and bucket, and what they are opened with.
#[derive(Default)]
pub(crate) struct Stores {
    settings: Settings,
    open: Mutex<HashMap<(String, String), Arc<dyn ObjectStore>>>,
    pub(crate) cache: Option<BlockCache>,
}

static STORES: OnceLock<Stores> = OnceLock::new();

/// Says how stores are reached, for the whole process. Programs call it once, before anything else here is.
///
/// # Errors
/// A cache folder that cannot be used.
pub fn configure(settings: Settings) -> io::Result<()> {
    let cache = settings.cache.as_ref().map(BlockCache::open).transpose()?;
    match STORES.set(Stores { settings, open: Mutex::default(), cache }) {
        Ok(()) => Ok(()),
        Err(_) => Err(io::Error::other("stores are in use already")),
    }
}

pub(crate) fn stores() -> &'static Stores {
    STORES.get_or_init(Stores::default)
}

/// The folder where files lie until they are uploaded.
pub fn scratch() -> PathBuf {
    stores().settings.scratch.clone().unwrap_or_else(|| PathBuf::from("/tmp"))
}

/// A file without a name, to be written and uploaded. It is gone when it is closed, however that comes about.
///
/// # Errors
/// A scratch folder that cannot be written.
pub fn temporary() -> io::Result<std::fs::File> {
    tempfile::tempfile_in(scratch())
}

impl Stores {
    pub(crate) fn open(&self, scheme: &str, bucket: &str) -> io::Result<Arc<dyn ObjectStore>> {
        let id = (scheme.to_owned(), bucket.to_owned());
        // After a panic elsewhere the map is at worst smaller.
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(store) = open.get(&id) {
            return Ok(store.clone());
        }
        let store = self.build(scheme, bucket)?;
        open.insert(id, store.clone());
        Ok(store)
    }

    fn build(&self, scheme: &str, bucket: &str) -> io::Result<Arc<dyn ObjectStore>> {
        let retry =
            RetryConfig { max_retries: 6, retry_timeout: std::time::Duration::from_secs(60), ..RetryConfig::default() };
        // Values are not repeated in messages: they may be secrets.
        let store: object_store::Result<Arc<dyn ObjectStore>> = match scheme {
            "s3" => {
                let builder = AmazonS3Builder::new().with_config(AmazonS3ConfigKey::DisableBulkDelete, "true");
                let settings = known(self.settings.aws()?, |name| name.parse::<AmazonS3ConfigKey>().ok());
                let endpoints = [AmazonS3ConfigKey::Endpoint, AmazonS3ConfigKey::S3Endpoint];
                refuse_http(&settings, &endpoints, &AmazonS3ConfigKey::Client(ClientConfigKey::AllowHttp), "AWS_")?;
                let builder =
                    settings.into_iter().fold(builder, |builder, (key, value)| builder.with_config(key, value));
                let builder = builder.with_bucket_name(bucket).with_retry(retry).with_http_connector(Connector);
                builder.build().map(|store| Arc::new(store) as _)
            }
            "gs" => {
                let builder = GoogleCloudStorageBuilder::new();
                let settings = known(self.settings.with_prefix("GOOGLE_"), |name| name.parse::<GoogleConfigKey>().ok());
                let allow = GoogleConfigKey::Client(ClientConfigKey::AllowHttp);
                refuse_http(&settings, &[GoogleConfigKey::BaseUrl], &allow, "GOOGLE_")?;
                let builder =
                    settings.into_iter().fold(builder, |builder, (key, value)| builder.with_config(key, value));
                let builder = builder.with_bucket_name(bucket).with_retry(retry).with_http_connector(Connector);
                builder.build().map(|store| Arc::new(store) as _)
            }
            "az" => {
                let builder = MicrosoftAzureBuilder::new();
                let settings = known(self.settings.with_prefix("AZURE_"), |name| name.parse::<AzureConfigKey>().ok());
                let allow = AzureConfigKey::Client(ClientConfigKey::AllowHttp);
                refuse_http(&settings, &[AzureConfigKey::Endpoint], &allow, "AZURE_")?;
                let builder =
                    settings.into_iter().fold(builder, |builder, (key, value)| builder.with_config(key, value));
                let builder = builder.with_container_name(bucket).with_retry(retry).with_http_connector(Connector);
                builder.build().map(|store| Arc::new(store) as _)
            }
            "http" | "https" => {
                let options =
                    ClientOptions::new().with_config(ClientConfigKey::AllowHttp, (scheme == "http").to_string());
                let builder = HttpBuilder::new().with_url(format!("{scheme}://{bucket}")).with_client_options(options);
                builder.with_retry(retry).with_http_connector(Connector).build().map(|store| Arc::new(store) as _)
            }
            "memory" => return memory::bucket(bucket),
            _ => {
                let problem = format!("{scheme}:// is not supported; s3, gs, az, http and https are");
                return Err(io::Error::new(io::ErrorKind::InvalidInput, problem));
            }
        };
        store.map_err(explain)
    }
}

/// The settings that a store knows.
fn known<K>(settings: impl IntoIterator<Item = (String, String)>, key: impl Fn(&str) -> Option<K>) -> Vec<(K, String)> {
    settings.into_iter().filter_map(|(name, value)| Some((key(&name)?, value))).collect()
}

/// Refuses an endpoint without TLS unless the settings allow it. The HTTP client would refuse every request, which looks like a server that cannot be
/// reached and is tried again for minutes.
fn refuse_http<K: PartialEq>(settings: &[(K, String)], endpoints: &[K], allow: &K, prefix: &str) -> io::Result<()> {
    let is_http = |value: &String| value.trim_start().get(..7).is_some_and(|s| s.eq_ignore_ascii_case("http://"));
    let is_plain = settings.iter().any(|(key, value)| endpoints.contains(key) && is_http(value));
    // The last one of a name counts.
    let is_allowed = settings.iter().rfind(|(key, _)| key == allow).is_some_and(|(_, value)| is_true(value));
    if !is_plain || is_allowed {
        return Ok(());
    }
    let problem = format!(
        "the endpoint that the settings give is an http:// address, to which everything is sent without encryption: set {prefix}ALLOW_HTTP=true to use it, or give an \
         https:// address"
    );
    Err(io::Error::new(io::ErrorKind::InvalidInput, problem))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(scheme: &str, variables: &[(&str, &str)]) -> io::Result<Arc<dyn ObjectStore>> {
        let keys = [("AWS_ACCESS_KEY_ID", "A"), ("AWS_SECRET_ACCESS_KEY", "B"), ("AZURE_STORAGE_ACCOUNT_NAME", "a")];
        let variables = keys.iter().chain(variables).map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let stores = Stores { settings: Settings::from_vars(variables), ..Stores::default() };
        stores.open(scheme, "bucket")
    }

    #[test]
    fn an_endpoint_without_tls_is_refused_by_the_name_of_the_setting_that_allows_it() {
        let http = "http://127.0.0.1:9000";
        for (scheme, endpoint, allow) in [
            ("s3", "AWS_ENDPOINT_URL", "AWS_ALLOW_HTTP"),
            ("s3", "AWS_ENDPOINT_URL_S3", "AWS_ALLOW_HTTP"),
            ("az", "AZURE_STORAGE_ENDPOINT", "AZURE_ALLOW_HTTP"),
            ("gs", "GOOGLE_BASE_URL", "GOOGLE_ALLOW_HTTP"),
        ] {
            for variables in [&[(endpoint, http)][..], &[(endpoint, http), (allow, "false")]] {
                let error = open(scheme, variables).map(drop).unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{error}");
                assert!(error.to_string().contains(&format!("{allow}=true")), "{error}");
            }
            let refused =
                |result: io::Result<_>| result.err().is_some_and(|e: io::Error| e.to_string().contains(allow));
            assert!(!refused(open(scheme, &[(endpoint, http), (allow, "true")]).map(drop)), "{endpoint}");
            assert!(!refused(open(scheme, &[(endpoint, http), (allow, "1")]).map(drop)), "{endpoint}");
            assert!(!refused(open(scheme, &[(endpoint, "https://127.0.0.1:9000")]).map(drop)), "{endpoint}");
        }
    }
}
