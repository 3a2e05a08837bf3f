//! Plain English as a test: forms that make a reader look twice, and British spelling, do not come back.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use tests::root;

/// A name, and a function that counts the pattern in a line.
type Pattern = (&'static str, fn(&str) -> usize);

const PATTERNS: [Pattern; 5] = [
    ("a doc comment that begins with \"Of\"", begins_with_of),
    ("\"is no\" for \"is not a\"", is_no),
    ("\"so many\"", |line| count(line, "so many")),
    ("\"whoever\"", |line| count(line, "whoever")),
    ("British spelling", |line| BRITISH.iter().map(|word| count(line, word)).sum()),
];

/// How often each pattern is there, by crate and folder. A count may only become smaller; when it does, this list is lowered with it.
const ALLOWED: [(&str, [usize; PATTERNS.len()]); 13] = [
    (".", [0, 0, 0, 0, 0]),
    ("assets", [0, 0, 0, 0, 0]),
    ("docs", [0, 0, 0, 0, 1]),
    ("hub", [0, 0, 0, 0, 0]),
    ("images", [0, 0, 0, 0, 3]),
    ("models", [0, 0, 0, 0, 0]),
    ("pipeline", [0, 0, 0, 0, 0]),
    ("program", [0, 0, 0, 0, 0]),
    ("schemas", [0, 0, 0, 0, 4]),
    ("storage", [0, 0, 0, 0, 0]),
    ("tests", [0, 0, 0, 0, 0]),
    ("torch-ext", [0, 0, 0, 0, 0]),
    ("trainer", [0, 0, 0, 0, 0]),
];

const BRITISH: [&str; 19] = [
    "artefact",
    "behaviour",
    "centre",
    "centring",
    "colour",
    "favour",
    "grey",
    "initialis",
    "labelled",
    "labelling",
    "maximis",
    "minimis",
    "neighbour",
    "normalis",
    "optimis",
    "quantis",
    "recognis",
    "serialis",
    "visualis",
];

fn begins_with_of(line: &str) -> usize {
    let line = line.trim_start();
    usize::from(line.starts_with("/// Of ") || line.starts_with("//! Of "))
}

fn count(line: &str, word: &str) -> usize {
    line.to_lowercase().matches(word).count()
}

fn is_no(line: &str) -> usize {
    let places = line.match_indices(" is no ").filter(|&(at, found)| {
        let (before, after) = (&line[..at], &line[at + found.len()..]);
        !before.to_lowercase().ends_with("there") && !after.starts_with("longer") && !after.starts_with("more ")
    });
    places.count()
}

/// The .rs, .md and .toml files below `dir`, or in it alone.
fn files(dir: &Path, below: bool) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    let mut found = Vec::new();
    for path in entries.map(|entry| entry.expect("readable entry").path()) {
        if path.is_dir() && below {
            found.extend(files(&path, below));
        } else if path
            .extension()
            .is_some_and(|extension| extension == "rs" || extension == "md" || extension == "toml")
        {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// The lines of a crate or folder where a pattern is.
fn places(folder: &str) -> [Vec<String>; PATTERNS.len()] {
    let mut places = [const { Vec::new() }; PATTERNS.len()];
    for path in files(&root().join(folder), folder != ".") {
        if path.ends_with("it/english.rs") {
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        for (number, line) in text.lines().enumerate() {
            for (found, (_, count)) in places.iter_mut().zip(PATTERNS) {
                let place = format!("{}:{}: {}", path.display(), number + 1, line.trim());
                found.extend(std::iter::repeat_n(place, count(line)));
            }
        }
    }
    places
}

#[test]
fn prose_stays_plain() {
    let allowed = BTreeMap::from(ALLOWED);
    let (mut list, mut problems) = (String::new(), Vec::new());
    for folder in ALLOWED.map(|(folder, _)| folder) {
        let places = places(folder);
        let counts = places.each_ref().map(Vec::len);
        list += &format!("    ({folder:?}, {counts:?}),\n");
        for (i, (name, _)) in PATTERNS.iter().enumerate() {
            let most = allowed[folder][i];
            if counts[i] > most {
                problems.push(format!("{folder}: {name} is there {} times, {most} are allowed:", counts[i]));
                problems.extend(places[i].iter().map(|place| format!("    {place}")));
            } else if counts[i] < most {
                problems
                    .push(format!("{folder}: {name} is there only {} times; lower the list from {most}", counts[i]));
            }
        }
    }
    assert!(problems.is_empty(), "{}\nThe counts now:\n{list}", problems.join("\n"));
}

#[test]
fn the_patterns_find_what_they_are_for() {
    let counts = |line: &str| PATTERNS.map(|(_, count)| count(line));
    assert_eq!(counts("    /// Of masks."), [1, 0, 0, 0, 0]);
    assert_eq!(counts("`x` is no precision; there is no y, and it is no longer z"), [0, 1, 0, 0, 0]);
    assert_eq!(counts("So many for whoever asks"), [0, 0, 1, 1, 0]);
    assert_eq!(counts("the colour's centre is Normalised to grey"), [0, 0, 0, 0, 4]);
    assert_eq!(counts("/// A mean of the normalized colors, often offset"), [0; 5]);
}
