//! A server that answers like the hub: models' descriptions, small files by way of a redirect within the host, large files by way
//! of a redirect to a storage host. `127.0.0.1` is the hub and `localhost` the storage; both are this process.

use std::collections::{BTreeMap, VecDeque};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

use sha1::Sha1;
use sha2::{Digest, Sha256};

use schemas::hex;

pub(super) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What the server has and how it misbehaves.
#[derive(Clone, Default)]
pub(super) struct Hub {
    /// By name; contents of 1000 bytes and more are "large".
    pub files: BTreeMap<String, Vec<u8>>,
    /// Names that the description lists beside them.
    pub also_listed: Vec<String>,
    /// The commit that the description states, if not the true one.
    pub commit: Option<String>,
    /// Status and error code of every answer of the hub.
    pub refuses: Option<(u16, &'static str)>,
    /// Number of bytes after which the next bodies from the storage end.
    pub cuts: Arc<Mutex<VecDeque<usize>>>,
    /// Number of the next answers that are status 503.
    pub busy: Arc<Mutex<usize>>,
    /// The storage changes a byte.
    pub corrupts: bool,
    /// The storage knows no ranges.
    pub no_ranges: bool,
    /// The hash that the hub states of large files, if not the true one.
    pub etag: Option<String>,
    /// The size that the hub states of large files, if not the true one.
    pub size: Option<u64>,
    /// Bytes of white space in front of the description.
    pub padding: usize,
}

/// A request as it came.
#[derive(Debug, Clone)]
pub(super) struct Request {
    pub method: String,
    pub path: String,
    pub headers: BTreeMap<String, String>,
}

impl Request {
    pub(super) fn to_storage(&self) -> bool {
        self.headers["host"].starts_with("localhost")
    }
}

pub(super) struct Server {
    pub endpoint: String,
    log: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    pub(super) fn start(hub: Hub) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let log: Arc<Mutex<Vec<Request>>> = Arc::default();
        let to = Arc::clone(&log);
        // Ends with the test process.
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (hub, log) = (hub.clone(), Arc::clone(&to));
                // A client that goes away early is what some tests are about.
                thread::spawn(move || stream.map(|stream| serve(&hub, port, stream, &log)));
            }
        });
        Server { endpoint: format!("http://127.0.0.1:{port}"), log }
    }

    /// The requests so far.
    pub(super) fn requests(&self) -> Vec<Request> {
        self.log.lock().unwrap().clone()
    }

    /// The `Range` headers of the requests to the storage.
    pub(super) fn ranges(&self) -> Vec<Option<String>> {
        let requests = self.requests();
        let storage = requests.iter().filter(|request| request.to_storage());
        let range = |r: &Request| {
            assert_eq!(r.method, "GET", "hashes are asked of the hub alone");
            r.headers.get("range").cloned()
        };
        storage.map(range).collect()
    }
}

/// An address that refuses connections for as long as this lives.
///
/// A port that was free a moment ago may be another test's by now. This one is taken, at another address of the same host, and nobody
/// else gets a port that is taken anywhere on it.
pub(super) struct Closed {
    taken: TcpListener,
}

impl Closed {
    pub(super) fn new() -> Closed {
        Closed { taken: TcpListener::bind("127.0.0.1:0").unwrap() }
    }

    /// Host and port.
    pub(super) fn address(&self) -> String {
        format!("127.0.0.2:{}", self.taken.local_addr().unwrap().port())
    }
}

fn serve(hub: &Hub, port: u16, mut stream: TcpStream, log: &Mutex<Vec<Request>>) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let first = lines.next().transpose()?.unwrap_or_default();
    let mut words = first.split(' ');
    let (method, path) = (words.next().unwrap(), words.next().unwrap_or_default());
    let mut headers = BTreeMap::new();
    for line in lines {
        let line = line?;
        let Some((name, value)) = line.split_once(": ") else {
            break;
        };
        headers.insert(name.to_ascii_lowercase(), value.to_owned());
    }
    let request = Request { method: method.to_owned(), path: path.to_owned(), headers };
    log.lock().unwrap().push(request.clone());
    let (head, body) = answer(hub, port, &request);
    stream.write_all(format!("HTTP/1.1 {head}\r\nConnection: close\r\n\r\n").as_bytes())?;
    if method != "HEAD" {
        stream.write_all(&body)?;
    }
    stream.shutdown(Shutdown::Write)?;
    // Closing with unread bytes would reset the connection before the client has read.
    stream.read_to_end(&mut Vec::new()).map(|_| ())
}

pub(super) fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

pub(super) fn git_hash(bytes: &[u8]) -> String {
    let header = format!("blob {}\0", bytes.len());
    hex(&Sha1::new().chain_update(header).chain_update(bytes).finalize())
}

/// Status line and headers, and the body.
fn answer(hub: &Hub, port: u16, request: &Request) -> (String, Vec<u8>) {
    let empty = |head: String| (format!("{head}\r\nContent-Length: 0"), vec![]);
    {
        let mut busy = hub.busy.lock().unwrap();
        if *busy > 0 {
            *busy -= 1;
            return empty("503 Service Unavailable".to_owned());
        }
    }
    if request.to_storage() {
        let wanted = request.path.strip_prefix("/storage/").unwrap();
        let mut files = hub.files.values();
        let mut content = files.find(|bytes| sha256(bytes) == wanted).unwrap().clone();
        if hub.corrupts {
            *content.last_mut().unwrap() ^= 1;
        }
        return storage(hub, request, content);
    }
    if let Some((status, code)) = hub.refuses {
        return empty(format!("{status} No\r\nX-Error-Code: {code}"));
    }
    if let Some(rest) = request.path.strip_prefix("/api/models/org/name/revision/") {
        if rest != "main" && rest != COMMIT && rest != "refs%2Fpr%2F1" {
            return empty("404 No\r\nX-Error-Code: RevisionNotFound".to_owned());
        }
        let names = hub.files.keys().chain(&hub.also_listed);
        let siblings: Vec<_> = names.map(|name| serde_json::json!({ "rfilename": name })).collect();
        let commit = hub.commit.as_deref().unwrap_or(COMMIT);
        let model = serde_json::json!({"id": "org/name", "sha": commit, "siblings": siblings});
        let body = format!("{}{model}", " ".repeat(hub.padding));
        return (format!("200 OK\r\nContent-Length: {}", body.len()), body.into());
    }
    let resolve = format!("/org/name/resolve/{COMMIT}/");
    let cached = format!("/api/resolve-cache/models/org/name/{COMMIT}/");
    if let Some((name, content)) = request.path.strip_prefix(&resolve).and_then(|name| hub.files.get_key_value(name)) {
        return match content.len() {
            // The hub's own cache, given as a path.
            0..1000 => empty(format!("307 Go\r\nLocation: {cached}{name}")),
            size => {
                let hash = sha256(content);
                empty(format!(
                    "302 Go\r\nETag: \"of the redirection\"\r\nX-Linked-Etag: \"{}\"\r\nX-Linked-Size: {}\r\nLocation: \
                     http://localhost:{port}/storage/{hash}",
                    hub.etag.as_ref().unwrap_or(&hash),
                    hub.size.unwrap_or(size as u64)
                ))
            }
        };
    }
    match request.path.strip_prefix(&cached).and_then(|name| hub.files.get(name)) {
        Some(content) => (
            format!("200 OK\r\nETag: W/\"{}\"\r\nContent-Length: {}", git_hash(content), content.len()),
            content.clone(),
        ),
        None => empty("404 No\r\nX-Error-Code: EntryNotFound".to_owned()),
    }
}

fn storage(hub: &Hub, request: &Request, content: Vec<u8>) -> (String, Vec<u8>) {
    let total = content.len();
    let range = request.headers.get("range").filter(|_| !hub.no_ranges);
    let start = range.map(|range| {
        let range = range.strip_prefix("bytes=").unwrap();
        range.strip_suffix('-').unwrap().parse::<usize>().unwrap()
    });
    let status = match start {
        None => "200 OK".to_owned(),
        Some(start) if start >= total => {
            return ("416 No\r\nContent-Length: 0".to_owned(), vec![]);
        }
        Some(start) => format!("206 Part\r\nContent-Range: bytes {start}-{}/{total}", total - 1),
    };
    let mut body = content[start.unwrap_or(0)..].to_vec();
    let head = format!("{status}\r\nContent-Length: {}", body.len());
    if let Some(cut) = hub.cuts.lock().unwrap().pop_front() {
        body.truncate(cut);
    }
    (head, body)
}
