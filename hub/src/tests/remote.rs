//! Against a server that answers like the hub, and against one that does not.

use std::sync::{Arc, Mutex};
use std::thread;

use tempfile::TempDir;

use super::server::{COMMIT, Closed, Hub, Server, git_hash, sha256};
use super::*;

mod broken;
mod refused;

const TOKEN: &str = "hf_nobody_else_sees_this";

/// Large for the server, and several reports of progress long.
fn weights() -> Vec<u8> {
    (0..1_000_000u32).map(|i| (i / 251 + i) as u8).collect()
}

/// A model with two small files and large weights.
fn hub() -> Hub {
    let mut hub = Hub::default();
    let mut add = |name: &str, bytes: Vec<u8>| hub.files.insert(name.to_owned(), bytes);
    add("config.json", b"{\"a\": 1}".to_vec());
    add("preprocessor_config.json", b"{\"b\": 2}".to_vec());
    add("model.safetensors", weights());
    add("pytorch_model.bin", b"nobody wants this".to_vec());
    add("README.md", b"nor this".to_vec());
    hub.also_listed = vec!["onnx/model.safetensors".to_owned(), "a b.txt".to_owned()];
    hub
}

/// A server and an empty cache.
struct World {
    server: Server,
    cache: TempDir,
    settings: HubSettings,
}

impl World {
    fn new(hub: Hub) -> World {
        let server = Server::start(hub);
        let cache = tempfile::tempdir().unwrap();
        let settings = HubSettings {
            cache: Some(cache.path().join("hub")),
            endpoint: server.endpoint.clone(),
            offline: false,
            token: Some(Secret::new(TOKEN.to_owned())),
            retry_pause: Duration::from_millis(1),
            ..HubSettings::default()
        };
        World { server, cache, settings }
    }

    fn resolve(&self, text: &str) -> Result<Resolved> {
        resolve(text, &self.settings, &mut go_on)
    }

    /// A resolve that must fail: the error and its message, which must not hold the token.
    fn error(&self, text: &str) -> (Error, String) {
        let error = self.resolve(text).unwrap_err();
        let said = format!("{error} {error:?}");
        assert!(!said.contains(TOKEN), "{said}");
        (error, said)
    }

    fn root(&self) -> PathBuf {
        self.cache.path().join("hub/models--org--name")
    }

    fn incomplete(&self) -> PathBuf {
        let name = format!("blobs/{}.incomplete", sha256(&weights()));
        self.root().join(name)
    }

    /// Puts bytes where an earlier run would have left them.
    fn leave(&self, bytes: &[u8]) {
        fs::create_dir_all(self.root().join("blobs")).unwrap();
        fs::write(self.incomplete(), bytes).unwrap();
    }

    fn assert_whole(&self, found: &Resolved) {
        assert!(fs::read(found.path.join("model.safetensors")).unwrap() == weights());
        assert!(!self.incomplete().exists());
    }
}

#[test]
fn a_model_is_fetched_into_the_layout_that_other_tools_read() {
    let world = World::new(hub());
    let found = world.resolve("org/name").unwrap();
    assert_eq!(found.source, format!("org/name@{COMMIT}"));
    assert_eq!(found.path, world.root().join("snapshots").join(COMMIT));
    let mut names: Vec<_> =
        fs::read_dir(&found.path).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names, ["config.json", "model.safetensors", "preprocessor_config.json"]);
    world.assert_whole(&found);

    let link = |name: &str| fs::read_link(found.path.join(name)).unwrap();
    let blob = |etag: String| Path::new("../../blobs").join(etag);
    assert_eq!(link("model.safetensors"), blob(sha256(&weights())));
    assert_eq!(link("config.json"), blob(git_hash(b"{\"a\": 1}")));
    assert_eq!(fs::read(found.path.join("config.json")).unwrap(), b"{\"a\": 1}");
    assert_eq!(fs::read_to_string(world.root().join("refs/main")).unwrap(), COMMIT);
    let absent = world.root().join(".no_exist").join(COMMIT);
    assert!(absent.join("open_clip_config.json").is_file());
    assert_eq!(fs::read_dir(world.root().join("blobs")).unwrap().count(), 3);

    // Everything is known now: nobody is asked again, online or not.
    let asked = world.server.requests().len();
    assert_eq!(world.resolve("org/name").unwrap(), found);
    assert_eq!(world.resolve(&format!("org/name@{COMMIT}")).unwrap(), found);
    assert_eq!(world.server.requests().len(), asked);

    let of_branch = world.resolve("org/name@refs/pr/1").unwrap();
    assert_eq!(of_branch, found);
    assert_eq!(fs::read_to_string(world.root().join("refs/refs/pr/1")).unwrap(), COMMIT);
}

#[test]
fn the_token_goes_to_the_endpoint_alone() {
    let mut world = World::new(hub());
    let file = world.cache.path().join("token");
    fs::write(&file, format!("{TOKEN}\n")).unwrap();
    world.settings.token = None;
    world.settings.token_file = Some(file);
    world.resolve("org/name").unwrap();
    let requests = world.server.requests();
    let expected = format!("Bearer {TOKEN}");
    let (storage, own): (Vec<_>, Vec<_>) = requests.iter().partition(|r| r.to_storage());
    assert!(!storage.is_empty() && own.len() > 3);
    for request in own {
        assert_eq!(request.headers.get("authorization"), Some(&expected), "{request:?}");
    }
    for request in storage {
        assert!(!format!("{request:?}").contains(TOKEN), "{request:?}");
    }
}

/// As transformers leaves it: weights and config.json. The rest comes from the commit of the cache, and the weights stay.
#[test]
fn what_other_tools_left_out_is_added() {
    let world = World::new(hub());
    let there = [("model.safetensors", "theirs"), ("config.json", "{}")];
    fill(&world.cache.path().join("hub"), COMMIT, &there);
    let found = world.resolve("org/name").unwrap();
    let read = |name: &str| fs::read_to_string(found.path.join(name)).unwrap();
    assert_eq!(read("preprocessor_config.json"), "{\"b\": 2}");
    assert_eq!(read("model.safetensors"), "theirs");
    assert!(world.server.requests()[0].path.ends_with(COMMIT));
}

#[test]
fn a_sharded_set_comes_with_all_its_shards() {
    let mut hub = hub();
    hub.files.remove("model.safetensors");
    let index = br#"{"weight_map": {"a": "m-1.safetensors", "b": "m-2.safetensors", "c": "m-1.safetensors"}}"#;
    for (name, bytes) in [
        ("model.safetensors.index.json", index.to_vec()),
        ("m-1.safetensors", vec![1; 3000]),
        ("m-2.safetensors", vec![2; 4000]),
    ] {
        hub.files.insert(name.to_owned(), bytes);
    }
    let world = World::new(hub.clone());
    let found = world.resolve("org/name").unwrap();
    assert_eq!(fs::read(found.path.join("m-2.safetensors")).unwrap(), [2; 4000]);
    assert!(found.path.join("model.safetensors.index.json").is_file());

    hub.files.remove("m-2.safetensors");
    let (error, said) = World::new(hub).error("org/name");
    assert!(matches!(error, Error::BadModel { .. }), "{said}");
    assert!(said.contains("m-2.safetensors"), "{said}");
}

/// Every file is fetched once, however many ask for it at the same time.
#[test]
fn concurrent_calls_share_one_download() {
    let world = World::new(hub());
    let waited = Mutex::new(0);
    let found = thread::scope(|scope| {
        let calls: Vec<_> = (0..6)
            .map(|_| {
                scope.spawn(|| {
                    resolve("org/name", &world.settings, &mut |progress| {
                        *waited.lock().unwrap() += u32::from(matches!(progress, Progress::Waiting { .. }));
                        ControlFlow::Continue(())
                    })
                })
            })
            .collect();
        calls.into_iter().map(|call| call.join().unwrap().unwrap()).collect::<Vec<_>>()
    });
    for found in &found {
        world.assert_whole(found);
    }
    assert_eq!(world.server.ranges(), [None], "{} calls waited", waited.lock().unwrap());
    let temporary = fs::read_dir(&found[0].path).unwrap();
    assert_eq!(temporary.count(), 3);
}

#[test]
fn who_asks_to_stop_is_obeyed_and_may_go_on() {
    let world = World::new(hub());
    let stopped = resolve("org/name", &world.settings, &mut |progress| match progress {
        Progress::Bytes { done: 300_000.., .. } => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    });
    assert!(matches!(stopped, Err(Error::Interrupted { .. })), "{stopped:?}");
    let kept = fs::metadata(world.incomplete()).unwrap().len();
    assert!((300_000..1_000_000).contains(&kept));
    world.assert_whole(&world.resolve("org/name").unwrap());
    assert_eq!(world.server.ranges(), [None, Some(format!("bytes={kept}-"))]);
}

#[test]
fn a_proxy_is_used_but_not_for_hosts_without() {
    let mut world = World::new(hub());
    let closed = Closed::new();
    let proxy = format!("http://me:word@{}", closed.address());
    world.settings.proxy = Some(Secret::new(proxy));
    let (error, said) = world.error("org/name");
    assert!(matches!(error, Error::Unreachable { .. }), "{said}");
    assert!(!said.contains("word"), "{said}");
    assert!(world.server.requests().is_empty());
    world.settings.no_proxy = Some("127.0.0.1, localhost".to_owned());
    world.resolve("org/name").unwrap();
}
