//! Where models are looked for: what the `HF_*` variables say.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The hub that is asked unless `HF_ENDPOINT` names another.
const HUB: &str = "https://huggingface.co";

/// Where models are looked for by their id. The default finds paths alone.
#[derive(Debug, Clone)]
pub struct HubSettings {
    /// The cache's folder, the one with `models--org--name` in it.
    pub cache: Option<PathBuf>,
    /// The hub, as a URL without a slash at its end.
    pub endpoint: String,
    /// Whether nothing may be fetched.
    pub offline: bool,
    /// The token to show to the endpoint, and nobody else.
    pub token: Option<Secret>,
    /// A file with the token, read when something is fetched and `token` is absent.
    pub token_file: Option<PathBuf>,
    /// An HTTP proxy, as a URL; it may hold a password.
    pub proxy: Option<Secret>,
    /// Hosts that are reached without it, separated by commas.
    pub no_proxy: Option<String>,
    /// The pause before the second attempt of a request that failed; each further one doubles it.
    pub retry_pause: Duration,
}

impl Default for HubSettings {
    fn default() -> HubSettings {
        HubSettings {
            cache: None,
            endpoint: HUB.to_owned(),
            offline: true,
            token: None,
            token_file: None,
            proxy: None,
            no_proxy: None,
            retry_pause: Duration::from_millis(500),
        }
    }
}

impl HubSettings {
    /// What the environment says, as huggingface_hub reads it; `var` gives the value of a variable.
    ///
    /// | of | first of these |
    /// |---|---|
    /// | cache | `HF_HUB_CACHE`, `HUGGINGFACE_HUB_CACHE`, `HF_HOME`/hub, `XDG_CACHE_HOME`/huggingface/hub, ~/.cache/huggingface/hub |
    /// | endpoint | `HF_ENDPOINT`, <https://huggingface.co> |
    /// | token | `HF_TOKEN`, the file `HF_TOKEN_PATH` or `HF_HOME`/token |
    /// | offline | `HF_HUB_OFFLINE` or `TRANSFORMERS_OFFLINE` is `1`, `on`, `yes` or `true` |
    /// | proxy | `HTTPS_PROXY` (`HTTP_PROXY` for an endpoint without TLS), `ALL_PROXY`; not for `NO_PROXY`; small letters too |
    ///
    /// A variable that is empty counts as absent.
    pub fn from_vars(var: impl Fn(&str) -> Option<String>) -> HubSettings {
        let var = |name: &str| {
            let value = var(name)?.trim().to_owned();
            (!value.is_empty()).then_some(value)
        };
        let home = var("HOME").map(PathBuf::from);
        let path = |name: &str| {
            let value = var(name)?;
            Some(match (value.strip_prefix("~/"), &home) {
                (Some(rest), Some(home)) => home.join(rest),
                _ => PathBuf::from(value),
            })
        };
        let hf_home = path("HF_HOME").or_else(|| {
            let caches = path("XDG_CACHE_HOME").or_else(|| Some(home.as_ref()?.join(".cache")));
            caches.map(|caches| caches.join("huggingface"))
        });
        let in_home = |name: &str| Some(hf_home.as_deref()?.join(Path::new(name)));
        let flag = |name: &str| {
            let value = var(name).map(|value| value.to_ascii_lowercase());
            matches!(value.as_deref(), Some("1" | "on" | "yes" | "true"))
        };
        let either = |name: &str| var(name).or_else(|| var(&name.to_ascii_lowercase()));

        let endpoint = var("HF_ENDPOINT").unwrap_or_else(|| HUB.to_owned());
        let of_scheme = match endpoint.starts_with("http://") {
            true => "HTTP_PROXY",
            false => "HTTPS_PROXY",
        };
        HubSettings {
            cache: path("HF_HUB_CACHE").or_else(|| path("HUGGINGFACE_HUB_CACHE")).or_else(|| in_home("hub")),
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            offline: flag("HF_HUB_OFFLINE") || flag("TRANSFORMERS_OFFLINE"),
            token: var("HF_TOKEN").map(Secret::new),
            token_file: path("HF_TOKEN_PATH").or_else(|| in_home("token")),
            proxy: either(of_scheme).or_else(|| either("ALL_PROXY")).map(Secret::new),
            no_proxy: either("NO_PROXY"),
            ..HubSettings::default()
        }
    }
}

/// A text that no message shows.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Keeps `text`.
    pub fn new(text: String) -> Secret {
        Secret(text)
    }

    pub(super) fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}
