//! Against a server that answers like the hub, and against one that does not.

use std::sync::{Arc, Mutex};
use std::thread;

use tempfile::TempDir;

use super::server::{COMMIT, Hub, Server, git_hash, sha256};
use super::*;

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
        World {
            server,
            cache,
            settings,
        }
    }

    fn resolve(&self, text: &str) -> Result<Resolved> {
        resolve(text, &self.settings, &mut go_on)
    }

    /// Of a resolve that must fail: the error, and what it says, which must not hold the token.
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
    let mut names: Vec<_> = fs::read_dir(&found.path)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(
        names,
        [
            "config.json",
            "model.safetensors",
            "preprocessor_config.json"
        ]
    );
    world.assert_whole(&found);

    let link = |name: &str| fs::read_link(found.path.join(name)).unwrap();
    let blob = |etag: String| Path::new("../../blobs").join(etag);
    assert_eq!(link("model.safetensors"), blob(sha256(&weights())));
    assert_eq!(link("config.json"), blob(git_hash(b"{\"a\": 1}")));
    assert_eq!(
        fs::read(found.path.join("config.json")).unwrap(),
        b"{\"a\": 1}"
    );
    assert_eq!(
        fs::read_to_string(world.root().join("refs/main")).unwrap(),
        COMMIT
    );
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
    assert_eq!(
        fs::read_to_string(world.root().join("refs/refs/pr/1")).unwrap(),
        COMMIT
    );
}

/// What is damaged in the cache is told by the file to delete, and fetched again once it is.
#[test]
fn a_damaged_blob_is_named_and_fetched_again() {
    let world = World::new(hub());
    let found = world.resolve("org/name").unwrap();
    let blob = found.path.join("model.safetensors").canonicalize().unwrap();
    fs::write(&blob, &weights()[..100]).unwrap();
    match crate::weights::Weights::read(&found.path) {
        Err(error @ crate::Error::DamagedDownload { .. }) => {
            let said = error.to_string();
            assert!(
                said.contains(&format!("delete {blob:?}")) && said.contains("safetensors"),
                "{said}"
            );
        }
        other => panic!("{other:?}"),
    }
    fs::remove_file(&blob).unwrap();
    world.assert_whole(&world.resolve("org/name").unwrap());
    // The same bytes elsewhere are nobody's download.
    let copy = world.cache.path().join("model.safetensors");
    fs::write(&copy, &weights()[..100]).unwrap();
    let error = crate::weights::Weights::read(&copy).unwrap_err();
    assert!(
        matches!(error, crate::Error::BadSafetensors { .. }),
        "{error}"
    );
}

#[test]
fn a_name_that_is_not_resolved_is_no_broken_connection() {
    let mut world = World::new(hub());
    // RFC 6761: no name below .invalid exists.
    world.settings.endpoint = "http://hub.invalid".to_owned();
    let (error, said) = world.error("org/name");
    assert!(matches!(error, Error::Unreachable { .. }), "{said}");
    assert!(
        said.contains("resolved") || said.contains("name is not known"),
        "{said}"
    );
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
        assert_eq!(
            request.headers.get("authorization"),
            Some(&expected),
            "{request:?}"
        );
    }
    for request in storage {
        assert!(!format!("{request:?}").contains(TOKEN), "{request:?}");
    }
}

#[test]
fn a_connection_that_breaks_is_resumed_where_it_broke() {
    let hub = hub();
    hub.cuts.lock().unwrap().extend([300_000, 0, 1000]);
    let world = World::new(hub);
    let mut retries = 0;
    let found = resolve("org/name", &world.settings, &mut |progress| {
        retries += u32::from(matches!(progress, Progress::Retrying { .. }));
        ControlFlow::Continue(())
    });
    world.assert_whole(&found.unwrap());
    let range = |start: u64| Some(format!("bytes={start}-"));
    assert_eq!(
        world.server.ranges(),
        [None, range(300_000), range(300_000), range(301_000)]
    );
    assert_eq!(retries, 3);
}

#[test]
fn a_connection_that_breaks_always_is_given_up_and_what_came_is_kept() {
    let hub = hub();
    let cuts = Arc::clone(&hub.cuts);
    cuts.lock().unwrap().extend([5000, 0, 0, 0, 0, 0]);
    let world = World::new(hub);
    let (error, said) = world.error("org/name");
    assert!(matches!(error, Error::Unreachable { .. }), "{said}");
    assert_eq!(fs::metadata(world.incomplete()).unwrap().len(), 5000);
    assert!(
        !world
            .root()
            .join("snapshots")
            .join(COMMIT)
            .join("model.safetensors")
            .exists()
    );
    cuts.lock().unwrap().clear();
    world.assert_whole(&world.resolve("org/name").unwrap());
    assert_eq!(
        world.server.ranges().last().unwrap().as_deref(),
        Some("bytes=5000-")
    );
}

#[test]
fn what_an_earlier_run_left_is_used_if_it_fits() {
    let whole = weights();
    let wrong = vec![1; 5000];
    let long = vec![1; whole.len() + 1];
    for (left, requests) in [
        (&whole[..5000], 1),
        (&whole[..], 0),
        (&wrong, 2),
        (&long, 1),
    ] {
        let world = World::new(hub());
        world.leave(left);
        world.assert_whole(&world.resolve("org/name").unwrap());
        assert_eq!(world.server.ranges().len(), requests);
    }
}

#[test]
fn a_server_without_ranges_begins_anew() {
    let world = World::new(Hub {
        no_ranges: true,
        ..hub()
    });
    world.leave(&weights()[..5000]);
    world.assert_whole(&world.resolve("org/name").unwrap());
    assert_eq!(world.server.ranges(), [Some("bytes=5000-".to_owned())]);
}

#[test]
fn bytes_with_another_hash_are_refused() {
    let world = World::new(Hub {
        corrupts: true,
        ..hub()
    });
    for left in [0, 5000] {
        world.leave(&weights()[..left]);
        let (error, said) = world.error("org/name");
        assert!(matches!(error, Error::HashMismatch { .. }), "{said}");
        assert!(
            said.contains(&sha256(&weights())) && said.contains("model.safetensors"),
            "{said}"
        );
        assert!(!world.incomplete().exists());
        assert!(
            !world
                .root()
                .join("snapshots")
                .join(COMMIT)
                .join("model.safetensors")
                .exists()
        );
        assert!(!world.root().join("refs/main").exists());
    }
}

#[test]
fn each_refusal_says_what_to_do() {
    for (status, code, with_token, words) in [
        (
            401,
            "GatedRepo",
            false,
            "licence must be accepted: do so at http://127.0.0.1",
        ),
        (403, "GatedRepo", true, "has not accepted its licence"),
        (401, "", true, "set one that is valid"),
        (403, "", false, "no token was shown: set HF_TOKEN"),
        (
            401,
            "RepoNotFound",
            false,
            "no such file or folder here, and 127.0.0.1",
        ),
        (404, "RepoNotFound", true, "has no such model"),
        (404, "RevisionNotFound", true, "has no such revision"),
        (404, "", true, "has no such model or revision"),
        (418, "", true, "gives HTTP 418"),
    ] {
        let mut world = World::new(Hub {
            refuses: Some((status, code)),
            ..hub()
        });
        if !with_token {
            world.settings.token = None;
        }
        let (_, said) = world.error("org/name@v3");
        assert!(said.contains(words), "{status} {code}: {said}");
        assert!(said.contains("org/name"), "{said}");
        // What will not change is not asked twice.
        assert_eq!(world.server.requests().len(), 1);
    }
    let (error, said) = World::new(hub()).error("org/name@nosuch");
    assert!(matches!(error, Error::NotFound { .. }), "{said}");
    assert!(said.contains("org/name@nosuch"), "{said}");
}

#[test]
fn a_busy_server_is_asked_again_and_not_for_ever() {
    let hub = hub();
    let busy = Arc::clone(&hub.busy);
    *busy.lock().unwrap() = 4;
    let world = World::new(hub);
    world.assert_whole(&world.resolve("org/name").unwrap());

    fs::remove_dir_all(world.root()).unwrap();
    *busy.lock().unwrap() = usize::MAX;
    let asked = world.server.requests().len();
    let (error, said) = world.error("org/name");
    assert!(matches!(error, Error::Unreachable { .. }), "{said}");
    assert!(
        said.contains("503") && said.contains("5 attempts"),
        "{said}"
    );
    assert_eq!(world.server.requests().len(), asked + 5);
}

#[test]
fn without_a_network_the_cache_helps_if_it_has_weights() {
    let mut world = World::new(hub());
    // A port that nobody listens at, for its listener is dropped.
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    world.settings.endpoint = format!("http://{}", closed.local_addr().unwrap());
    drop(closed);
    let (error, said) = world.error("org/name");
    assert!(matches!(error, Error::Unreachable { .. }), "{said}");
    assert!(said.contains("HTTPS_PROXY"), "{said}");

    fill(
        &world.cache.path().join("hub"),
        COMMIT,
        &[("model.safetensors", "x")],
    );
    let mut unconfirmed = 0;
    let found = resolve("org/name", &world.settings, &mut |progress| {
        unconfirmed += u32::from(matches!(progress, Progress::Unconfirmed { .. }));
        ControlFlow::Continue(())
    });
    assert_eq!(found.unwrap().source, format!("org/name@{COMMIT}"));
    assert_eq!(unconfirmed, 1);
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
fn names_that_leave_the_folder_are_refused() {
    for name in [
        "../evil.safetensors",
        "/etc/x",
        "a/../../b",
        "a\\b",
        "x:y",
        "a\0b",
    ] {
        let world = World::new(Hub {
            also_listed: vec![name.to_owned()],
            ..hub()
        });
        let (error, said) = world.error("org/name");
        assert!(matches!(error, Error::BadAnswer { .. }), "{name:?}: {said}");
    }
    let bad = |hub: Hub, words: &str| {
        let world = World::new(hub);
        let (_, said) = world.error("org/name");
        assert!(said.contains(words), "{said}");
        // Nothing but the cache is in its folder, and no link to anywhere in there.
        let names: Vec<_> = fs::read_dir(world.cache.path()).unwrap().collect();
        assert!(names.len() <= 1, "{names:?}");
    };
    let commit = Some("../../../../evil".to_owned());
    bad(Hub { commit, ..hub() }, "a commit that is none");
    let etag = Some("../".repeat(21) + "x");
    bad(Hub { etag, ..hub() }, "neither SHA-256 nor git's");

    let mut sharded = hub();
    sharded.files.remove("model.safetensors");
    let index = br#"{"weight_map": {"a": "../../evil"}}"#.to_vec();
    sharded
        .files
        .insert("model.safetensors.index.json".to_owned(), index);
    bad(sharded, "which is no plain file name");
}

#[test]
fn sizes_are_bounded() {
    let bad = |hub: Hub, words: &str| {
        let (error, said) = World::new(hub).error("org/name");
        assert!(matches!(error, Error::BadAnswer { .. }), "{said}");
        assert!(said.contains(words), "{said}");
    };
    let padding = 17 << 20;
    bad(Hub { padding, ..hub() }, "bytes about the model");
    let mut large = hub();
    large.size = Some(1 << 60);
    bad(large.clone(), "model.safetensors a size of");
    large.size = Some(20 << 20);
    large
        .files
        .insert("config.json".to_owned(), vec![b' '; 2000]);
    bad(large, "config.json a size of");
    let also_listed = (0..50_001).map(|i| i.to_string()).collect();
    bad(
        Hub {
            also_listed,
            ..hub()
        },
        "more than 50000 files",
    );
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
    assert_eq!(
        fs::read(found.path.join("m-2.safetensors")).unwrap(),
        [2; 4000]
    );
    assert!(found.path.join("model.safetensors.index.json").is_file());

    hub.files.remove("m-2.safetensors");
    let (error, said) = World::new(hub).error("org/name");
    assert!(matches!(error, Error::BadModel { .. }), "{said}");
    assert!(said.contains("m-2.safetensors"), "{said}");
}

#[test]
fn a_model_without_weights_that_are_read_is_refused() {
    let mut hub = hub();
    hub.files.retain(|name, _| name.ends_with(".json"));
    for name in ["a.pth", "b.pth"] {
        hub.files.insert(name.to_owned(), vec![0; 10]);
    }
    let (error, said) = World::new(hub).error("org/name");
    assert!(matches!(error, Error::NoWeights { .. }), "{said}");
    assert!(said.contains("candidates: a.pth, b.pth"), "{said}");
    let (error, said) = World::new(Hub::default()).error("org/name");
    assert!(matches!(error, Error::NoWeights { .. }), "{said}");
    assert!(
        said.contains("no file of weights") && !error.to_string().contains("candidates"),
        "{said}"
    );
}

/// Every file is fetched once, whoever asks for it at the same time.
#[test]
fn concurrent_calls_share_one_download() {
    let world = World::new(hub());
    let waited = Mutex::new(0);
    let found = thread::scope(|scope| {
        let calls: Vec<_> = (0..6)
            .map(|_| {
                scope.spawn(|| {
                    resolve("org/name", &world.settings, &mut |progress| {
                        *waited.lock().unwrap() +=
                            u32::from(matches!(progress, Progress::Waiting { .. }));
                        ControlFlow::Continue(())
                    })
                })
            })
            .collect();
        calls
            .into_iter()
            .map(|call| call.join().unwrap().unwrap())
            .collect::<Vec<_>>()
    });
    for found in &found {
        world.assert_whole(found);
    }
    assert_eq!(
        world.server.ranges(),
        [None],
        "{} calls waited",
        waited.lock().unwrap()
    );
    let temporary = fs::read_dir(&found[0].path).unwrap();
    assert_eq!(temporary.count(), 3);
}

#[test]
fn who_asks_to_stop_is_obeyed_and_may_go_on() {
    let world = World::new(hub());
    let stopped = resolve(
        "org/name",
        &world.settings,
        &mut |progress| match progress {
            Progress::Bytes {
                done: 300_000.., ..
            } => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        },
    );
    assert!(
        matches!(stopped, Err(Error::Interrupted { .. })),
        "{stopped:?}"
    );
    let kept = fs::metadata(world.incomplete()).unwrap().len();
    assert!((300_000..1_000_000).contains(&kept));
    world.assert_whole(&world.resolve("org/name").unwrap());
    assert_eq!(
        world.server.ranges(),
        [None, Some(format!("bytes={kept}-"))]
    );
}

#[test]
fn settings_that_cannot_be_used_are_named() {
    let mut world = World::new(hub());
    world.settings.token = Some(Secret::new("two\r\nlines".to_owned()));
    let (_, said) = world.error("org/name");
    assert!(said.contains("HF_TOKEN") && !said.contains("two"), "{said}");
    world.settings.token = None;
    world.settings.proxy = Some(Secret::new("http://me:word@".to_owned()));
    let (_, said) = world.error("org/name");
    assert!(
        said.contains("HTTPS_PROXY") && !said.contains("word"),
        "{said}"
    );
    for endpoint in [
        "huggingface.co",
        "ftp://x",
        "https://me:word@x",
        "http://x?y",
        "",
    ] {
        world.settings.endpoint = endpoint.to_owned();
        let (_, said) = world.error("org/name");
        assert!(
            said.contains("HF_ENDPOINT") && !said.contains("word"),
            "{said}"
        );
    }
    assert!(world.server.requests().is_empty());
}

#[test]
fn a_proxy_is_used_but_not_for_hosts_without() {
    let mut world = World::new(hub());
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let proxy = format!("http://me:word@{}", closed.local_addr().unwrap());
    drop(closed);
    world.settings.proxy = Some(Secret::new(proxy));
    let (error, said) = world.error("org/name");
    assert!(matches!(error, Error::Unreachable { .. }), "{said}");
    assert!(!said.contains("word"), "{said}");
    assert!(world.server.requests().is_empty());
    world.settings.no_proxy = Some("127.0.0.1, localhost".to_owned());
    world.resolve("org/name").unwrap();
}

#[test]
fn a_cache_that_cannot_be_written_is_named() {
    let mut world = World::new(hub());
    let file = world.cache.path().join("file");
    fs::write(&file, "").unwrap();
    world.settings.cache = Some(file.clone());
    let (error, said) = world.error("org/name");
    assert!(matches!(error, Error::Disk { .. }), "{said}");
    assert!(
        said.contains("HF_HUB_CACHE") && said.contains(file.to_str().unwrap()),
        "{said}"
    );
}
