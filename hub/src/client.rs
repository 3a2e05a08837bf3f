//! The hub's protocol: which requests are made, which host sees the token, which answers are believed.
//!
//! Redirects are followed here and not in the HTTP library, because the hub states a file's hash in the answer that redirects,
//! and because the token goes to the endpoint's own scheme, host and port and to no other.

use std::io::Read;
use std::time::Duration;

use serde::Deserialize;
use ureq::http::Response;
use ureq::{Agent, Body};

use super::{Error, HubSettings, ModelId, Result, Secret, is_commit, is_lower_hex};

mod access;
mod url;

use access::{proxy, token};
use url::{Origin, follow, quoted};

/// The answer about a model of ten thousand files takes about 1 MB.
const MAX_INFO_BYTES: u64 = 16 << 20;

/// Files of a model; those of checkpoints in thousands of shards are below it.
const MAX_FILES: usize = 50_000;

/// Redirects of one request: a renamed model, a cache in front of the hub, a storage host.
const MAX_REDIRECTS: usize = 8;

/// What the hub says about a model at a revision.
#[derive(Debug)]
pub(super) struct Info {
    /// The commit.
    pub commit: String,
    /// The files in its top folder.
    pub files: Vec<String>,
}

/// What the hub says about a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Meta {
    /// 64 hexadecimal digits: SHA-256. 40: git's SHA-1 of a blob.
    pub etag: String,
    /// Bytes.
    pub size: u64,
}

/// Why a request came to nothing.
pub(super) enum Failure {
    /// It may go better the next time.
    Transient { host: String, reason: String },
    /// It will not.
    Final(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure::Final(error)
    }
}

/// Speaks with one endpoint about one model.
pub(super) struct Client<'a> {
    agent: Agent,
    endpoint: &'a str,
    origin: Origin,
    token: Option<Secret>,
    id: &'a ModelId,
}

/// The last answer of a chain of redirects.
struct Answer {
    response: Response<Body>,
    /// Who gave it.
    origin: Origin,
    /// Hash and size as the endpoint stated them, the last statement of each.
    linked_etag: Option<String>,
    linked_size: Option<u64>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Method {
    Get,
    Head,
}

impl<'a> Client<'a> {
    pub(super) fn new(settings: &'a HubSettings, id: &'a ModelId) -> Result<Client<'a>> {
        let endpoint = settings.endpoint.as_str();
        let unusable = Error::Setting {
            name: "HF_ENDPOINT",
            problem: "is no URL of a hub, such as https://huggingface.co (no user name, no query)",
        };
        let origin = match Origin::of(endpoint) {
            Some(origin) if !endpoint.contains(['?', '#']) => origin,
            _ => return Err(unusable),
        };
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .user_agent(concat!("mr-mae/", env!("CARGO_PKG_VERSION")))
            // A range of a compressed answer would be one of other bytes.
            .accept_encoding("identity")
            .proxy(proxy(settings)?)
            .timeout_resolve(Some(Duration::from_secs(20)))
            .timeout_connect(Some(Duration::from_secs(20)))
            .timeout_recv_response(Some(Duration::from_secs(60)))
            .timeout_per_read(Some(Duration::from_secs(30)))
            .timeout_per_write(Some(Duration::from_secs(30)))
            .build();
        Ok(Client { agent: config.into(), endpoint, origin, token: token(settings)?, id })
    }

    /// The endpoint's host, for people.
    pub(super) fn host(&self) -> String {
        self.origin.name()
    }

    /// Commit and files of the model at `revision`.
    pub(super) fn info(&self, revision: &str) -> Result<Info, Failure> {
        #[derive(Deserialize)]
        struct Model {
            sha: String,
            siblings: Vec<Sibling>,
        }
        #[derive(Deserialize)]
        struct Sibling {
            rfilename: String,
        }
        let id = &self.id.name;
        let url = format!("{}/api/models/{id}/revision/{}", self.endpoint, quoted(revision));
        let mut answer = self.request(Method::Get, url, None)?;
        self.expect(&answer, &[200], "model or revision")?;
        let mut text = Vec::new();
        let body = answer.response.body_mut().as_reader();
        body.take(MAX_INFO_BYTES + 1).read_to_end(&mut text).map_err(|e| broken(&answer.origin, &e))?;
        if text.len() as u64 > MAX_INFO_BYTES {
            return Err(self.bad(format!("more than {MAX_INFO_BYTES} bytes about the model")));
        }
        let model: Model =
            serde_json::from_slice(&text).map_err(|e| self.bad(format!("no description of a model ({e})")))?;
        if !is_commit(&model.sha) {
            return Err(self.bad("a commit that is none".to_owned()));
        }
        if model.siblings.len() > MAX_FILES {
            return Err(self.bad(format!("a list of more than {MAX_FILES} files")));
        }
        let mut files = Vec::new();
        for Sibling { rfilename: name } in model.siblings {
            let leaves = |part: &str| matches!(part, "" | "." | "..");
            if name.split('/').any(leaves) || name.contains(['\\', '\0', ':']) {
                return Err(self.bad(format!("the file name {name:?}, which leaves the folder")));
            }
            if !name.contains('/') && name.len() <= 255 {
                files.push(name);
            }
        }
        Ok(Info { commit: model.sha, files })
    }

    /// Hash and size of a file.
    pub(super) fn meta(&self, commit: &str, file: &str) -> Result<Meta, Failure> {
        let answer = self.request(Method::Head, self.file_url(commit, file), None)?;
        if !answer.response.status().is_redirection() {
            self.expect(&answer, &[200], file)?;
        }
        let header = |name: &str| header(&answer.response, name);
        let etag = match answer.linked_etag.clone().or_else(|| header("etag")) {
            Some(etag) => etag,
            None => return Err(self.bad(format!("no hash of {file}"))),
        };
        let size = header("content-length").and_then(|size| size.parse().ok());
        // The length of a redirection is that of the page that says so.
        let size = size.filter(|_| !answer.response.status().is_redirection());
        let Some(size) = answer.linked_size.or(size) else {
            return Err(self.bad(format!("no size of {file}")));
        };
        let etag = etag.trim_start_matches("W/").trim_matches('"').to_owned();
        if !(matches!(etag.len(), 40 | 64) && is_lower_hex(&etag)) {
            return Err(self.bad(format!(
                "a hash of {file} that is neither SHA-256 nor git's, so that the file cannot be checked"
            )));
        }
        Ok(Meta { etag, size })
    }

    /// The bytes of a file from `start` on, or from the beginning if the server chooses so; and where they start. `None` when
    /// the server has none from there on.
    pub(super) fn bytes(&self, commit: &str, file: &str, start: u64) -> Result<Option<(u64, Stream)>, Failure> {
        let range = (start > 0).then_some(start);
        let answer = self.request(Method::Get, self.file_url(commit, file), range)?;
        if range.is_some() && answer.response.status() == 416 {
            return Ok(None);
        }
        self.expect(&answer, &[200, 206], file)?;
        let begins = match answer.response.status().as_u16() {
            206 => {
                let range = header(&answer.response, "content-range").unwrap_or_default();
                let first = range.strip_prefix("bytes ").and_then(|r| r.split('-').next());
                match first.and_then(|first| first.parse().ok()) {
                    Some(begins) if begins == start => begins,
                    _ => {
                        return Err(self.bad(format!("another range of {file} than was asked for")));
                    }
                }
            }
            _ => 0,
        };
        let origin = answer.origin;
        let reader = answer.response.into_body().into_reader();
        Ok(Some((begins, Stream { reader, origin })))
    }

    fn file_url(&self, commit: &str, file: &str) -> String {
        let (endpoint, id) = (self.endpoint, &self.id.name);
        format!("{endpoint}/{id}/resolve/{commit}/{}", quoted(file))
    }

    /// Follows redirects; for `Head` only those within the endpoint, which alone states hashes.
    fn request(&self, method: Method, url: String, start: Option<u64>) -> Result<Answer, Failure> {
        let (mut url, mut linked_etag, mut linked_size) = (url, None, None);
        for _ in 0..=MAX_REDIRECTS {
            let Some(origin) = Origin::of(&url) else {
                return Err(self.bad("a redirection to no usable URL".to_owned()));
            };
            if self.origin.scheme == "https" && origin.scheme != "https" {
                return Err(self.bad("a redirection to a connection without TLS".to_owned()));
            }
            let own = origin == self.origin;
            let mut request = match method {
                Method::Get => self.agent.get(&url),
                Method::Head => self.agent.head(&url),
            };
            if let Some(start) = start {
                request = request.header("Range", format!("bytes={start}-"));
            }
            if let Some(token) = self.token.as_ref().filter(|_| own) {
                request = request.header("Authorization", format!("Bearer {}", token.reveal()));
            }
            let response = request.call().map_err(|e| self.failed(&origin, e))?;
            if own {
                linked_etag = header(&response, "x-linked-etag").or(linked_etag);
                let size = header(&response, "x-linked-size").and_then(|size| size.parse().ok());
                linked_size = size.or(linked_size);
            }
            let location = match response.status().as_u16() {
                301 | 302 | 303 | 307 | 308 => header(&response, "location"),
                _ => None,
            };
            let next = location.and_then(|location| follow(&origin, &location));
            let stays = next.as_deref().and_then(Origin::of).as_ref() == Some(&self.origin);
            match next {
                Some(next) if stays || method == Method::Get => url = next,
                _ => {
                    return Ok(Answer { response, origin, linked_etag, linked_size });
                }
            }
        }
        Err(self.bad("redirections without end".to_owned()))
    }

    /// Turns a status that is none of `wanted` into what it means.
    fn expect(&self, answer: &Answer, wanted: &[u16], what: &str) -> Result<(), Failure> {
        let status = answer.response.status().as_u16();
        if wanted.contains(&status) {
            return Ok(());
        }
        let host = answer.origin.name();
        let transient = |reason: String| Failure::Transient { host: host.clone(), reason };
        if answer.origin != self.origin {
            // Addresses at a storage host expire; the endpoint gives new ones.
            return Err(transient(format!("HTTP {status} for {what}")));
        }
        let code = header(&answer.response, "x-error-code").unwrap_or_default();
        let not_found = |what: &str| {
            Failure::Final(Error::NotFound {
                id: self.id.name.clone(),
                revision: self.id.revision.clone(),
                host: host.clone(),
                what: what.to_owned(),
                status,
            })
        };
        Err(match status {
            // The hub hides whether a private model exists.
            _ if code == "RepoNotFound" => not_found("model"),
            _ if code == "RevisionNotFound" => not_found("revision"),
            401 | 403 => Failure::Final(Error::Denied {
                id: self.id.name.clone(),
                host,
                status,
                gated: code == "GatedRepo",
                with_token: self.token.is_some(),
                page: format!("{}/{}", self.endpoint, self.id.name),
            }),
            404 | 410 => not_found(what),
            408 | 425 | 429 | 500.. => transient(format!("HTTP {status} for {what}")),
            _ => self.bad(format!("HTTP {status} for {what}")),
        })
    }

    fn failed(&self, origin: &Origin, error: ureq::Error) -> Failure {
        let host = origin.name();
        let unreachable = |reason: &str| {
            Failure::Final(Error::Unreachable {
                id: self.id.name.clone(),
                host: host.clone(),
                reason: reason.to_owned(),
            })
        };
        match error {
            ureq::Error::HostNotFound => unreachable("the host's name is not known here"),
            ureq::Error::Io(e) if e.kind() == std::io::ErrorKind::ConnectionRefused => {
                unreachable("the connection is refused")
            }
            ureq::Error::Rustls(e) => unreachable(&format!("no secure connection ({e})")),
            ureq::Error::Io(e) => broken(origin, &e),
            ureq::Error::Timeout(_) => Failure::Transient { host, reason: "no answer in time".to_owned() },
            // These may quote the URL, which may be signed.
            ureq::Error::BadUri(_) | ureq::Error::RequireHttpsOnly(_) | ureq::Error::Http(_) => {
                self.bad("a URL that cannot be used".to_owned())
            }
            error => Failure::Transient { host, reason: error.to_string() },
        }
    }

    fn bad(&self, reason: String) -> Failure {
        Failure::Final(Error::BadAnswer { id: self.id.name.clone(), host: self.origin.name(), reason })
    }
}

/// The body of an answer.
pub(super) struct Stream {
    reader: ureq::BodyReader<'static>,
    origin: Origin,
}

impl Stream {
    /// Reads some bytes; none at the end.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> Result<usize, Failure> {
        let read = self.reader.read(buffer);
        read.map_err(|e| broken(&self.origin, &e))
    }

    /// A connection that ended before its time.
    pub(super) fn short(&self) -> Failure {
        Failure::Transient { host: self.origin.name(), reason: "the connection ended early".to_owned() }
    }
}

fn broken(origin: &Origin, error: &std::io::Error) -> Failure {
    let said = error.to_string();
    // Of names that are not resolved the standard library says so in words alone.
    let what = match said.starts_with("failed to lookup address") {
        true => "its name, or that of the proxy, cannot be resolved",
        false => "the connection broke",
    };
    Failure::Transient { host: origin.name(), reason: format!("{what} ({said})") }
}

fn header(response: &Response<Body>, name: &str) -> Option<String> {
    let value = response.headers().get(name)?.to_str().ok()?;
    Some(value.trim().to_owned())
}
