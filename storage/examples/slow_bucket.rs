//! Serves a folder as a read-only bucket and delays every answer. `scripts/bench/bucket.py` uses it to measure training from a distant store.
//!
//! ```text
//! cargo run --release -p storage --example slow_bucket -- FOLDER MILLISECONDS
//! ```
//!
//! Prints its port and serves `s3://NAME/KEY` as the file `FOLDER/KEY`, whatever NAME and the credentials are, until its input is closed.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

#[expect(clippy::print_stdout, reason = "an example is a program")]
fn main() -> io::Result<()> {
    let mut args = std::env::args().skip(1);
    let (Some(folder), Some(millis)) = (args.next(), args.next().and_then(|text| text.parse().ok())) else {
        return Err(io::Error::other("give a folder and milliseconds"));
    };
    let (folder, latency) = (PathBuf::from(folder), Duration::from_millis(millis));
    let listener = TcpListener::bind("127.0.0.1:0")?;
    println!("{}", listener.local_addr()?.port());
    thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            let folder = folder.clone();
            // A client that goes away ends its thread.
            thread::spawn(move || serve(client, &folder, latency));
        }
    });
    io::stdin().read_to_end(&mut Vec::new()).map(drop)
}

fn serve(client: TcpStream, folder: &Path, latency: Duration) -> io::Result<()> {
    client.set_nodelay(true)?;
    let mut reader = BufReader::new(client.try_clone()?);
    let mut writer = client;
    loop {
        let (mut first, mut range) = (String::new(), None);
        if reader.read_line(&mut first)? == 0 {
            return Ok(());
        }
        loop {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            if let Some(value) = line.to_ascii_lowercase().trim().strip_prefix("range: bytes=") {
                range = value.split_once('-').and_then(|(from, to)| Some((from.parse().ok()?, to.parse().ok()?)));
            }
            if line.trim().is_empty() {
                break;
            }
        }
        thread::sleep(latency);
        let mut words = first.split(' ');
        let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let key = path.trim_start_matches('/').split_once('/').map_or("", |(_, key)| key);
        if query.contains("list-type=2") {
            let prefix = query.split('&').find_map(|pair| pair.strip_prefix("prefix=")).unwrap_or_default();
            let body = listing(folder, &prefix.replace("%2F", "/"), query.contains("delimiter="))?;
            write!(writer, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())?;
            continue;
        }
        let Ok(file) = File::open(folder.join(key)) else {
            write!(writer, "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")?;
            continue;
        };
        let len = file.metadata()?.len();
        let (from, to): (u64, u64) = range.unwrap_or((0, len.saturating_sub(1)));
        let count = (to.min(len.saturating_sub(1)) + 1).saturating_sub(from).min(len);
        let status = if range.is_some() { "206 Partial Content" } else { "200 OK" };
        let mut answer = format!(
            "HTTP/1.1 {status}\r\nContent-Length: {count}\r\nETag: \"{len}\"\r\nLast-Modified: Thu, 01 Jan 2026 00:00:00 GMT\r\n"
        );
        if range.is_some() {
            answer += &format!("Content-Range: bytes {from}-{}/{len}\r\n", from + count - 1);
        }
        let mut answer = (answer + "\r\n").into_bytes();
        if method == "GET" {
            let start = answer.len();
            answer.resize(start + count as usize, 0);
            file.read_exact_at(&mut answer[start..], from)?;
        }
        writer.write_all(&answer)?;
    }
}

/// `ListObjectsV2` of what lies below a prefix that ends with a slash.
fn listing(folder: &Path, prefix: &str, only_here: bool) -> io::Result<String> {
    let mut body = "<ListBucketResult><IsTruncated>false</IsTruncated>".to_owned();
    let mut folders = vec![prefix.trim_end_matches('/').to_owned()];
    while let Some(name) = folders.pop() {
        let Ok(entries) = std::fs::read_dir(folder.join(&name)) else { continue };
        for entry in entries {
            let entry = entry?;
            let file = entry.file_name().to_string_lossy().into_owned();
            let key = if name.is_empty() { file } else { format!("{name}/{file}") };
            match entry.file_type()?.is_dir() {
                true if only_here => {
                    body += &format!("<CommonPrefixes><Prefix>{key}/</Prefix></CommonPrefixes>");
                }
                true => folders.push(key),
                false => {
                    body += &format!(
                        "<Contents><Key>{key}</Key><Size>{}</Size><LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>",
                        entry.metadata()?.len()
                    );
                }
            }
        }
    }
    Ok(body + "</ListBucketResult>")
}
