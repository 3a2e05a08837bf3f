//! Pictures that a source holds and the data set does not: in every place where a user looks.

use std::fs;

use schemas::Skipped;

use super::support::{BAD, USABLE, World, assert_same_tree, output, run, stderr, stdout};

const HEIC: &[u8] = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic";

#[test]
fn skipped_pictures_are_counted_everywhere_and_listed_in_the_cache() {
    let world = World::new();
    let jpeg = fs::read(world.path("images/cat/005.jpg")).unwrap();
    for (name, bytes) in [
        ("cat/a.HEIC", HEIC),
        ("cat/b", HEIC),
        ("dog/c.jpg_large", &jpeg),
        ("dog/.d.jpg", &jpeg),
        ("dog/e.txt", b"a caption"),
    ] {
        fs::write(world.path("images").join(name), bytes).unwrap();
    }
    let dry = output(&world.build_args("cache", &["--dry-run"]));
    let said = stdout(&dry);
    assert!(said.contains("skipped            4: pictures and archives that are not in the data set"), "{said}");
    for line in
        ["       2  HEIC is not supported", "       1  JPEG without an image's extension", "       1  hidden picture"]
    {
        assert!(said.contains(line), "{said}");
    }
    assert!(said.contains("labels             23 of 23 images, 2 distinct labels"), "{said}");
    assert!(said.contains("not read           1 .txt"), "{said}");
    assert!(!world.path("cache").exists());

    let built = output(&world.build_args("cache", &[]));
    let warned = stderr(&built);
    assert!(warned.contains("skipped and not in the data set, 4: 2 HEIC is not supported"), "{warned}");
    assert!(warned.contains("the first is `cat/a.HEIC`"), "{warned}");
    let said = stdout(&built);
    assert!(said.contains("rejected           3") && said.contains("skipped            4:"), "{said}");
    assert!(said.contains("       2  HEIC is not supported"), "{said}");

    let skipped = schemas::read_skipped(&world.path("cache")).unwrap();
    assert_eq!(
        skipped,
        [
            Skipped::new("cat/a.HEIC", "HEIC is not supported", 1),
            Skipped::new("cat/b", "HEIC is not supported", 1),
            Skipped::new("dog/.d.jpg", "hidden picture", 1),
            Skipped::new("dog/c.jpg_large", "JPEG without an image's extension", 1),
        ]
    );
    let verify = output(&["pipeline".as_ref(), "verify".as_ref(), world.path("cache").as_os_str()]);
    let said = stdout(&verify);
    assert!(verify.status.success() && !said.contains("not part of the format"), "{said}");

    // Taken, where a pattern says so; and where nothing is skipped, nothing is written.
    let all = format!("data.images={}::*/[0-9c]*", world.path("images").display());
    world.build("all", &["--set", &all]).unwrap();
    let source = schemas::Cache::open(&world.path("all")).unwrap();
    assert_eq!(source.identity().dataset.samples, USABLE + BAD + 1);
    assert!(!world.path("all/rejects/skipped.jsonl").exists());
}

/// Another run of the same build notes what the source holds now, and changes nothing if that is the same.
#[test]
fn the_list_follows_the_source() {
    let world = World::new();
    fs::write(world.path("images/cat/a.heic"), HEIC).unwrap();
    world.build("cache", &[]).unwrap();
    world.build("again", &[]).unwrap();
    assert_same_tree(&world.path("again"), &world.path("cache"));
    fs::rename(world.path("images/cat/a.heic"), world.path("images/cat/b.heic")).unwrap();
    world.build("cache", &[]).unwrap();
    let keys = |cache: &str| -> Vec<String> {
        let skipped = schemas::read_skipped(&world.path(cache)).unwrap();
        skipped.into_iter().map(|skipped| skipped.key).collect()
    };
    assert_eq!(keys("cache"), ["cat/b.heic"]);
    fs::remove_file(world.path("images/cat/b.heic")).unwrap();
    let (_, said) = run(world.build_args("cache", &["--log-format", "json"])).unwrap();
    assert!(said.contains("\"skipped\":0"), "{said}");
    assert!(!world.path("cache/rejects/skipped.jsonl").exists());
}
