//! What the settings say about who asks and by which way.

use std::io::Read;
use std::path::Path;

use ureq::Proxy;

use super::super::{Error, HubSettings, Result, Secret};

/// A token is some 40 characters.
const MAX_TOKEN_BYTES: u64 = 4096;

pub(super) fn token(settings: &HubSettings) -> Result<Option<Secret>> {
    let from_file = |path: &Path| {
        let mut text = String::new();
        // Most people have none, and need none.
        let file = std::fs::File::open(path).ok()?;
        file.take(MAX_TOKEN_BYTES).read_to_string(&mut text).ok()?;
        let text = text.trim();
        (!text.is_empty()).then(|| Secret::new(text.to_owned()))
    };
    let token = settings.token.clone().or_else(|| settings.token_file.as_deref().and_then(from_file));
    match &token {
        Some(token) if !token.reveal().bytes().all(|b| b.is_ascii_graphic()) => Err(Error::Setting {
            name: "HF_TOKEN",
            problem: "(or the file HF_HOME/token) holds characters that no token has: set it again, or unset it",
        }),
        _ => Ok(token),
    }
}

pub(super) fn proxy(settings: &HubSettings) -> Result<Option<Proxy>> {
    let Some(url) = &settings.proxy else {
        return Ok(None);
    };
    let build = || {
        let plain = Proxy::new(url.reveal())?;
        let mut builder = Proxy::builder(plain.protocol()).host(plain.host()).port(plain.port());
        if let Some(name) = plain.username() {
            builder = builder.username(name);
        }
        if let Some(password) = plain.password() {
            builder = builder.password(password);
        }
        for host in settings.no_proxy.iter().flat_map(|hosts| hosts.split(',')) {
            builder = builder.no_proxy(host.trim());
        }
        builder.build()
    };
    build().map(Some).map_err(|_: ureq::Error| Error::Setting {
        name: "HTTPS_PROXY (or HTTP_PROXY, ALL_PROXY)",
        problem: "is no URL of an HTTP proxy, such as http://host:3128",
    })
}
