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
use crate::settings::Settings;

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
                let builder =
                    settings.into_iter().fold(builder, |builder, (key, value)| builder.with_config(key, value));
                let builder = builder.with_bucket_name(bucket).with_retry(retry).with_http_connector(Connector);
                builder.build().map(|store| Arc::new(store) as _)
            }
            "gs" => {
                let builder = GoogleCloudStorageBuilder::new();
                let settings = known(self.settings.with_prefix("GOOGLE_"), |name| name.parse::<GoogleConfigKey>().ok());
                let builder =
                    settings.into_iter().fold(builder, |builder, (key, value)| builder.with_config(key, value));
                let builder = builder.with_bucket_name(bucket).with_retry(retry).with_http_connector(Connector);
                builder.build().map(|store| Arc::new(store) as _)
            }
            "az" => {
                let builder = MicrosoftAzureBuilder::new();
                let settings = known(self.settings.with_prefix("AZURE_"), |name| name.parse::<AzureConfigKey>().ok());
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
