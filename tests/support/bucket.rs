//! A bucket on this machine: moto's S3 server, and in front of it a proxy that fails as networks and stores do.
//!
//! Included by the tests of several programs. Nothing here needs a network: ports are the system's, and the server ends with the test.
#![allow(dead_code, reason = "each program uses a part of it")]
#![allow(clippy::print_stdout, reason = "a test that is skipped says so")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Serves until its standard input is closed, which the end of the test does, however it comes about.
const SERVER: &str = r#"
import logging, os, sys, threading
logging.getLogger("werkzeug").setLevel(logging.ERROR)
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

server = make_server("127.0.0.1", 0, DomainDispatcherApplication(create_backend_app), threaded=True)

def end():
    sys.stdin.read()
    os._exit(0)

threading.Thread(target=end, daemon=True).start()
print(server.port, flush=True)
server.serve_forever()
"#;

/// What happens to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The server has an internal error.
    InternalError,
    /// The server has too much to do.
    SlowDown,
    /// The connection is cut in the middle of the answer.
    Cut,
    /// The server does what it is asked, and its answer is lost.
    LostAnswer,
    /// No answer comes.
    Silence,
    /// A byte of the answer is another.
    WrongByte,
}

/// A request as faults are chosen by it.
#[derive(Debug)]
pub(crate) struct Request<'a> {
    /// Counted from 0.
    pub(crate) number: u64,
    pub(crate) method: &'a str,
    /// With the query.
    pub(crate) path: &'a str,
}

type Choose = dyn Fn(&Request<'_>) -> Option<Fault> + Send + Sync;

/// The running server with the bucket `bucket`, and its proxy.
pub(crate) struct Bucket {
    server: Child,
    direct: SocketAddr,
    proxied: SocketAddr,
    requests: Arc<AtomicU64>,
    faults: Arc<AtomicU64>,
}

impl Bucket {
    /// Starts a server, whose requests `choose` decides about; `None` without the Python environment, which is said.
    pub(crate) fn start(choose: impl Fn(&Request<'_>) -> Option<Fault> + Send + Sync + 'static) -> Option<Bucket> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let python = Command::new(root.join("scripts/python-env")).arg("--if-present").output().unwrap();
        if !python.status.success() {
            println!("skipped: the Python environment is not installed (scripts/python-env installs it)");
            return None;
        }
        let python = String::from_utf8(python.stdout).unwrap();
        let mut server = Command::new(python.trim());
        server.args(["-c", SERVER]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut server = server.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(server.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let port: u16 = line.trim().parse().expect("moto starts: scripts/requirements.txt has it");
        let direct = SocketAddr::from(([127, 0, 0, 1], port));

        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let proxied = listener.local_addr().unwrap();
        let (requests, faults) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let counts = (requests.clone(), faults.clone());
        let choose: Arc<Choose> = Arc::new(choose);
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let (Ok(client), choose, counts) = (client, choose.clone(), counts.clone()) else { return };
                std::thread::spawn(move || {
                    // A client that was killed has closed its connection.
                    let _ = serve(client, direct, &*choose, &counts);
                });
            }
        });
        let bucket = Bucket { server, direct, proxied, requests, faults };
        let (status, _) = bucket.ask("PUT", "/bucket", &[]);
        assert_eq!(status, 200);
        Some(bucket)
    }

    /// What a program needs to know to reach it.
    pub(crate) fn env(&self) -> Vec<(&'static str, String)> {
        [
            ("AWS_ENDPOINT_URL", format!("http://{}", self.proxied)),
            ("AWS_ALLOW_HTTP", "true".to_owned()),
            ("AWS_ACCESS_KEY_ID", "test".to_owned()),
            ("AWS_SECRET_ACCESS_KEY", "a-secret-that-nobody-shows".to_owned()),
            ("AWS_REGION", "us-east-1".to_owned()),
            // For the answers that never come. The server itself may take seconds on a busy machine.
            ("AWS_TIMEOUT", "20s".to_owned()),
        ]
        .to_vec()
    }

    /// Requests so far.
    pub(crate) fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// Requests that failed so far.
    pub(crate) fn faults(&self) -> u64 {
        self.faults.load(Ordering::Relaxed)
    }

    /// Writes an object, past the proxy.
    pub(crate) fn put(&self, key: &str, bytes: &[u8]) {
        let (status, _) = self.ask("PUT", &format!("/bucket/{key}"), bytes);
        assert_eq!(status, 200, "{key}");
    }

    /// Writes every file below a folder, at the same place below `prefix`.
    pub(crate) fn put_tree(&self, folder: &Path, prefix: &str) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = format!("{prefix}/{}", path.file_name().unwrap().to_str().unwrap());
            match path.is_dir() {
                true => self.put_tree(&path, &name),
                false => self.put(&name, &std::fs::read(&path).unwrap()),
            }
        }
    }

    /// Every object below `prefix`, by its name below it.
    pub(crate) fn tree(&self, prefix: &str) -> BTreeMap<String, Vec<u8>> {
        let (mut found, mut after) = (BTreeMap::new(), String::new());
        loop {
            let query = format!("/bucket?list-type=2&prefix={prefix}/&start-after={after}");
            let (status, body) = self.ask("GET", &query, &[]);
            assert_eq!(status, 200, "{query}");
            let body = String::from_utf8(body).unwrap();
            let keys: Vec<&str> = body.split("<Key>").skip(1).filter_map(|rest| rest.split("</Key>").next()).collect();
            let Some(last) = keys.last() else { return found };
            for key in &keys {
                let (status, bytes) = self.ask("GET", &format!("/bucket/{key}"), &[]);
                assert_eq!(status, 200, "{key}");
                found.insert(key[prefix.len() + 1..].to_owned(), bytes);
            }
            after = (*last).to_owned();
        }
    }

    /// Asks the server itself; it takes any signature.
    fn ask(&self, method: &str, path: &str, body: &[u8]) -> (u16, Vec<u8>) {
        let mut server = TcpStream::connect(self.direct).unwrap();
        let key =
            "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0";
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nAuthorization: {key}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
            self.direct,
            body.len()
        );
        server.write_all(head.as_bytes()).unwrap();
        server.write_all(body).unwrap();
        let mut answer = Vec::new();
        server.read_to_end(&mut answer).unwrap();
        let end = body_of(&answer);
        let status = std::str::from_utf8(&answer[9..12]).unwrap().parse().unwrap();
        (status, answer.split_off(end))
    }
}

impl Drop for Bucket {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

/// Where the body of an answer begins.
fn body_of(answer: &[u8]) -> usize {
    answer.windows(4).position(|window| window == b"\r\n\r\n").expect("an answer has a head") + 4
}

/// Passes the requests of one connection on, each over a connection of its own.
fn serve(
    client: TcpStream,
    server: SocketAddr,
    choose: &Choose,
    (requests, faults): &(Arc<AtomicU64>, Arc<AtomicU64>),
) -> std::io::Result<()> {
    let mut reader = BufReader::new(client.try_clone()?);
    let mut writer = client;
    loop {
        let (mut head, mut length) = (String::new(), 0);
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line)? == 0 {
                return Ok(());
            }
            let lower = line.to_ascii_lowercase();
            if let Some(value) = lower.strip_prefix("content-length:") {
                length = value.trim().parse().unwrap_or(0);
            }
            if line == "\r\n" {
                break;
            }
            head += &line;
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        let number = requests.fetch_add(1, Ordering::Relaxed);
        let mut words = head.split(' ');
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let mut fault = choose(&Request { number, method, path });
        let refused = |status: &str, code: &str| {
            let body = match method {
                "HEAD" => String::new(),
                _ => format!("<Error><Code>{code}</Code></Error>"),
            };
            format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len())
        };
        match fault {
            Some(Fault::InternalError | Fault::SlowDown) => {
                faults.fetch_add(1, Ordering::Relaxed);
                let answer = match fault {
                    Some(Fault::SlowDown) => refused("503 Slow Down", "SlowDown"),
                    _ => refused("500 Internal Server Error", "InternalError"),
                };
                writer.write_all(answer.as_bytes())?;
                continue;
            }
            Some(Fault::Silence) => {
                faults.fetch_add(1, Ordering::Relaxed);
                // Until the client has lost its patience.
                let _ = reader.read(&mut [0])?;
                return Ok(());
            }
            _ => {}
        }
        let mut upstream = TcpStream::connect(server)?;
        upstream.write_all(head.as_bytes())?;
        upstream.write_all(b"Connection: close\r\n\r\n")?;
        upstream.write_all(&body)?;
        let mut answer = Vec::new();
        upstream.read_to_end(&mut answer)?;
        let start = if answer.is_empty() { 0 } else { body_of(&answer) };
        if answer.len() <= start && fault == Some(Fault::WrongByte) {
            fault = None;
        }
        match fault {
            Some(Fault::WrongByte) => {
                let at = start + (number as usize * 7919) % (answer.len() - start);
                answer[at] ^= 0x10;
            }
            Some(Fault::Cut) => {
                // In the body, or in the head if there is none.
                answer.truncate(if answer.len() > start { start + (answer.len() - start) / 2 } else { start / 2 });
            }
            Some(Fault::LostAnswer) => answer.clear(),
            _ => {}
        }
        if fault.is_some() {
            faults.fetch_add(1, Ordering::Relaxed);
        }
        writer.write_all(&answer)?;
        // The server has said that it closes.
        writer.shutdown(Shutdown::Both)?;
        return Ok(());
    }
}
