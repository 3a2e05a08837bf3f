//! Any one byte that changes is found, and the file is named; where it belongs to a row, the row too.

use std::fs;

use images::rng::{Purpose, Rng};
use pipeline::ExitStatus;
use schemas::Cache;

use super::support::{World, output, run, stderr, tree};

/// Bytes tried in each Parquet file; JSON files are tried whole.
const FLIPS: u64 = 60;

#[test]
fn any_flipped_byte_is_reported_with_its_file_and_row() {
    let world = World::new();
    world.build("cache", &[]).unwrap();
    let dir = world.path("cache");
    let verify = || run(["pipeline", "verify", &dir.display().to_string()].map(str::to_owned).into()).unwrap();
    let (status, said) = verify();
    assert_eq!(status, ExitStatus::Fine, "{said}");
    assert!(said.contains("sound"), "{said}");

    let state = Cache::open(&dir).unwrap().part_state(0).unwrap();
    let footer_of = |name: &str| match name {
        _ if name.starts_with("samples/") => state.samples.as_ref().unwrap().file.footer_bytes,
        _ => state.teachers.values().find(|t| name.contains(&format!("/{}/", t.id))).unwrap().file.footer_bytes,
    };
    let mut kinds = 0;
    // One part has a file of every kind.
    for (name, bytes) in
        tree(&dir).into_iter().filter(|(name, _)| !name.contains("part-00001") && !name.contains("part-00002"))
    {
        kinds += 1;
        let parquet = name.ends_with(".parquet");
        let len = bytes.len() as u64;
        let mut rng = Rng::new(7, Purpose::Select, &[kinds]);
        let positions: Vec<u64> = if parquet {
            (0..FLIPS).map(|_| rng.range(len)).chain([0, len - 1]).collect()
        } else {
            (0..len).step_by(7).collect()
        };
        for position in positions {
            let mut damaged = bytes.clone();
            damaged[position as usize] ^= 1 << (position % 8);
            fs::write(dir.join(&name), &damaged).unwrap();
            let (status, said) = verify();
            assert_eq!(status, ExitStatus::Problems, "{name}, byte {position}: {said}");
            assert!(said.contains(&name), "{name}, byte {position}: {said}");
            let in_rows = parquet && (4..len - footer_of(&name)).contains(&position);
            assert!(!in_rows || said.contains("row "), "{name}, byte {position} is in a row: {said}");
        }
        fs::write(dir.join(&name), &bytes).unwrap();
    }
    // cache.json, samples with commit and rejects, two teachers with identity, features and commit.
    assert_eq!(kinds, 4 + 2 * 3);
    assert_eq!(verify().0, ExitStatus::Fine);
}

#[test]
fn a_missing_file_and_an_unfinished_cache_are_problems() {
    let world = World::new();
    world.build("cache", &[]).unwrap();
    let dir = world.path("cache");
    let verify = || run(["pipeline", "verify", &dir.display().to_string()].map(str::to_owned).into()).unwrap();
    for (name, word, verdict) in [
        ("teachers/dino/part-00001.commit.json", "not built yet", ": sound so far, files not built yet: 1 ("),
        ("teachers/clip/part-00000.parquet", "part-00000.parquet", ": problems: 1 ("),
    ] {
        let bytes = fs::read(dir.join(name)).unwrap();
        fs::remove_file(dir.join(name)).unwrap();
        let (status, said) = verify();
        assert_eq!(status, ExitStatus::Problems, "{said}");
        assert!(said.contains(word) && said.contains(verdict), "{said}");
        fs::write(dir.join(name), bytes).unwrap();
    }
}

/// A commit record is the word that a part is complete. A build does not take it for a file that is gone or cut, neither to call the cache
/// complete nor to go on; it says what to do, and that gives the same bytes again.
#[test]
fn a_file_that_is_gone_or_cut_is_refused_and_built_again_as_told() {
    let world = World::new();
    world.build("cache", &[]).unwrap();
    let dir = world.path("cache");
    let whole = tree(&dir);
    for name in ["samples/part-00000.parquet", "teachers/clip/part-00001.parquet", "rejects/part-00000.jsonl"] {
        let bytes = fs::read(dir.join(name)).unwrap();
        for damage in ["gone", "cut", "longer"] {
            match damage {
                "gone" => fs::remove_file(dir.join(name)).unwrap(),
                "cut" => fs::write(dir.join(name), &bytes[..bytes.len() / 2]).unwrap(),
                _ => fs::write(dir.join(name), [&bytes[..], b"!"].concat()).unwrap(),
            }
            for more in [&[][..], &["--dry-run"]] {
                let refused = format!("{:#}", world.build("cache", more).unwrap_err());
                assert!(refused.contains(name), "{name} {damage}: {refused}");
                assert!(refused.contains("delete "), "{name} {damage}: {refused}");
            }
        }
        let commit = schemas::layout::commit_of(&dir.join(name)).unwrap();
        fs::remove_file(commit).unwrap();
        let (status, said) = world.build("cache", &[]).unwrap();
        assert_eq!(status, ExitStatus::Fine, "{said}");
        assert!(tree(&dir) == whole, "{name}: not the bytes it was built with");
    }
    // All at once, each by its name; a cache with holes is not added to either.
    for name in ["teachers/clip/part-00000.parquet", "teachers/dino/part-00002.parquet"] {
        fs::remove_file(dir.join(name)).unwrap();
    }
    let refused = format!("{:#}", world.build("cache", &[]).unwrap_err());
    assert!(refused.contains("2 of its files"), "{refused}");
    assert!(refused.contains("clip/part-00000.parquet") && refused.contains("dino/part-00002.parquet"), "{refused}");
}

/// A damaged record of one teacher keeps nobody from looking at another; it is told how to have it written again, which loses nothing.
#[test]
fn a_damaged_teacher_does_not_hide_the_others() {
    let world = World::new();
    world.build("cache", &[]).unwrap();
    let (dir, before) = (world.path("cache"), tree(&world.path("cache")));
    let path = dir.join("teachers/dino/teacher.json");
    fs::write(&path, "{}").unwrap();
    let look = |words: &[&str]| {
        let cache = dir.display().to_string();
        let line = ["pipeline", words[0], &cache];
        run(line.iter().chain(&words[1..]).map(|word| (*word).to_owned()).collect())
    };
    let (status, said) = look(&["stats", "--teacher", "clip"]).unwrap();
    assert_eq!(status, ExitStatus::Fine, "{said}");
    assert!(said.contains("teacher clip") && !said.contains("dino"), "{said}");
    for words in [&["stats"][..], &["stats", "--teacher", "dino"]] {
        let refused = look(words).unwrap_err().to_string();
        assert!(refused.contains("dino/teacher.json"), "{refused}");
    }
    let (status, said) = look(&["inspect"]).unwrap();
    assert_eq!(status, ExitStatus::Problems, "{said}");
    assert!(said.contains("teacher clip: 3 of 3 parts") && said.contains("teacher dino: damaged: "), "{said}");
    let (_, said) = look(&["inspect", "--json"]).unwrap();
    let json: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert!(json["teachers"]["clip"].is_object() && json["damaged"]["dino"].is_string());

    assert!(said.contains("delete it and run the command"), "{said}");
    fs::remove_file(&path).unwrap();
    world.build("cache", &[]).unwrap();
    assert!(tree(&dir) == before);
}

/// Damage to every kind of file at once, identity records among them, is built again with the same bytes; other settings repair nothing.
#[test]
fn repair_gives_back_the_bytes() {
    let world = World::new();
    // The parameters of i8 are in the record of the teacher.
    let pack = ["--pack", "original", "--codec", "i8"];
    world.build("whole", &pack).unwrap();
    world.build("cache", &pack).unwrap();
    let whole = tree(&world.path("whole"));
    let damage = |names: &[&str]| {
        for name in names {
            let mut bytes = whole[*name].clone();
            let at = bytes.len() * 2 / 3;
            bytes[at] ^= 4;
            fs::write(world.path("cache").join(name), bytes).unwrap();
        }
    };
    let all = [
        "cache.json",
        "samples/part-00000.parquet",
        "samples/part-00001.commit.json",
        "rejects/part-00000.jsonl",
        "teachers/clip/teacher.json",
        "teachers/clip/part-00001.parquet",
        "teachers/dino/part-00002.commit.json",
    ];
    let repair = |more: &[&str]| world.build("cache", &[&pack[..], &["--repair"], more].concat());
    for names in all.iter().map(std::slice::from_ref).chain([&all[..]]) {
        damage(names);
        let refused = format!("{:#}", repair(&["--seed", "9"]).unwrap_err());
        assert!(refused.contains("not the settings") || refused.contains("built with"), "{names:?}: {refused}");
        assert!(tree(&world.path("cache")) != whole, "{names:?} are as they were");
        repair(&[]).unwrap();
        assert!(tree(&world.path("cache")) == whole, "{names:?} are not repaired");
    }
    // A file that is gone, and nothing at all.
    fs::remove_file(world.path("cache/teachers/dino/part-00000.parquet")).unwrap();
    repair(&[]).unwrap();
    repair(&[]).unwrap();
    assert!(tree(&world.path("cache")) == whole);
    // The identity is gone altogether.
    fs::remove_file(world.path("cache/cache.json")).unwrap();
    let advice = format!("{:#}", world.build("cache", &pack).unwrap_err());
    assert!(advice.contains("--repair"), "{advice}");
    repair(&[]).unwrap();
    assert!(tree(&world.path("cache")) == whole);
    // A command without a teacher does not take away what it would not build.
    damage(&["teachers/dino/part-00000.parquet"]);
    let mut one = world.build_args("cache", &[&pack[..], &["--repair"]].concat());
    let dino = one.iter().position(|arg| arg.starts_with("teachers.dino")).unwrap();
    one.drain(dino - 1..=dino);
    let refused = format!("{:#}", run(one).unwrap_err());
    assert!(
        refused.contains("teacher dino") && world.path("cache/teachers/dino/part-00000.commit.json").exists(),
        "{refused}"
    );
    repair(&[]).unwrap();
    assert!(tree(&world.path("cache")) == whole);
    let none = format!("{:#}", world.build("none", &["--repair"]).unwrap_err());
    assert!(none.contains("no cache to repair"), "{none}");
}

/// A part, a teacher, or the outside of all files: what is asked for is checked, and nothing else.
#[test]
fn a_part_of_a_cache_is_checked_alone() {
    let world = World::new();
    world.build("cache", &[]).unwrap();
    let dir = world.path("cache");
    let verify = |more: &[&str]| {
        let cache = dir.display().to_string();
        run(["pipeline", "verify", &cache].into_iter().chain(more.iter().copied()).map(str::to_owned).collect())
    };
    let path = dir.join("teachers/dino/part-00001.parquet");
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 3;
    bytes[middle] ^= 1;
    fs::write(&path, bytes).unwrap();
    for found in
        [&[][..], &["--part", "1"], &["--teacher", "dino"], &["--part", "0", "--part", "1", "--teacher", "dino"]]
    {
        let (status, said) = verify(found).unwrap();
        assert!(status == ExitStatus::Problems && said.contains("dino/part-00001.parquet"), "{found:?}: {said}");
    }
    for (passed_over, rest) in [
        (&["--part", "0"][..], "other parts and teachers were not checked"),
        (&["--teacher", "clip"], "other parts and teachers were not checked"),
        (&["--quick"], "no row was read"),
    ] {
        let (status, said) = verify(passed_over).unwrap();
        assert!(status == ExitStatus::Fine && said.contains("sound") && said.contains(rest), "{passed_over:?}: {said}");
    }
    // What shows from outside shows quickly.
    fs::write(&path, "cut").unwrap();
    let (status, said) = verify(&["--quick", "--json"]).unwrap();
    let found: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!((status, found["sound"].as_bool()), (ExitStatus::Problems, Some(false)), "{said}");
    let refused = format!("{:#}", verify(&["--part", "7"]).unwrap_err());
    assert!(refused.contains("parts 0 to 2"), "{refused}");
    let refused = format!("{:#}", verify(&["--teacher", "siglip"]).unwrap_err());
    assert!(refused.contains("no teacher siglip"), "{refused}");
}

/// Damage is a problem of the data for every command that meets it; a wrong setting is not.
#[test]
fn damage_ends_every_command_with_the_status_of_problems() {
    let world = World::new();
    world.build("cache", &[]).unwrap();
    let (cache, images) = (world.path("cache").display().to_string(), world.path("images").display().to_string());
    let whole = tree(&world.path("cache"));
    let commands = [
        world.build_args("cache", &[]),
        ["pipeline", "add-images", &cache, "--images", &images].map(str::to_owned).to_vec(),
        ["pipeline", "recode", &cache, "--teacher", "clip", "--codec", "i8"].map(str::to_owned).to_vec(),
    ];
    for name in ["cache.json", "samples/part-00001.commit.json", "teachers/clip/part-00001.commit.json"] {
        let mut bytes = whole[name].clone();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(world.path("cache").join(name), bytes).unwrap();
        for command in &commands {
            let failed = output(command);
            assert_eq!(failed.status.code(), Some(1), "{name}, {command:?}: {}", stderr(&failed));
            assert!(stderr(&failed).contains(name), "{name}: {}", stderr(&failed));
        }
        fs::write(world.path("cache").join(name), &whole[name]).unwrap();
    }
    // Two files that are gone.
    for name in ["teachers/clip/part-00001.parquet", "teachers/dino/part-00000.parquet"] {
        fs::remove_file(world.path("cache").join(name)).unwrap();
    }
    assert_eq!(output(&commands[0]).status.code(), Some(1));
    let other = output(&world.build_args("cache", &["--repair", "--seed", "9"]));
    assert_eq!(other.status.code(), Some(2), "{}", stderr(&other));
}
