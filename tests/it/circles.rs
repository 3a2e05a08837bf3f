//! Modules of a crate form a tree of uses: no two siblings, each with all modules below it, import each other. A child may use its parent and
//! a parent its child.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use tests::root;

use crate::repo::{MEMBERS, files, read};

/// A module's path within its crate; empty for the crate's root.
type Module = Vec<String>;

/// Edges between sibling modules of each crate, with one file that has the import as an example.
type Edges = BTreeMap<(Module, Module), String>;

/// The part of a file before its tests.
fn production(text: &str) -> String {
    let code = match text.find("#[cfg(test)]\nmod tests {") {
        Some(start) => &text[..start],
        None => text,
    };
    code.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n")
}

/// `src/a/b.rs` -> `[a, b]`
fn module(src: &Path, file: &Path) -> Module {
    let relative = file.strip_prefix(src).expect("below src").with_extension("");
    let parts: Module = relative.iter().map(|part| part.to_string_lossy().into_owned()).collect();
    if parts == ["lib"] { Vec::new() } else { parts }
}

/// Cuts `a::{b::{c, d}, e}` into `a::b::c`, `a::b::d` and `a::e`.
fn expand(path: &str) -> Vec<String> {
    let Some((head, rest)) = path.split_once('{') else {
        return vec![path.trim().to_owned()];
    };
    let inner = rest.rsplit_once('}').map_or(rest, |(inner, _)| inner);
    let (mut depth, mut start, mut found) = (0usize, 0, Vec::new());
    for (i, c) in inner.char_indices().chain([(inner.len(), ',')]) {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                let item = inner[start..i].trim();
                if !item.is_empty() {
                    found.extend(expand(&format!("{}{item}", head.trim())));
                }
                start = i + 1;
            }
            _ => {}
        }
    }
    found
}

/// Every path of `code` that begins with `crate` or `super`, whole: those of `use` and those within expressions.
fn paths(code: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut rest = code;
    while let Some(start) = rest.find("use ") {
        let (before, after) = rest.split_at(start);
        found.extend(inline(before));
        let end = after.find(';').unwrap_or(after.len());
        let whole = &after[4..end];
        if ["crate::", "super::", "self::"].iter().any(|word| whole.starts_with(word)) {
            found.extend(expand(whole));
        } else {
            found.extend(inline(whole));
        }
        rest = &after[end..];
    }
    found.extend(inline(rest));
    found
}

fn inline(code: &str) -> Vec<String> {
    let is_path = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
    let words = code.split(|c| !is_path(c));
    words.filter(|word| word.starts_with("crate::") || word.starts_with("super::")).map(str::to_owned).collect()
}

/// The module that a path within module `here` names, or is in.
fn target(path: &str, here: &Module, modules: &BTreeSet<Module>) -> Module {
    let mut at = here.clone();
    let path = path.split(" as ").next().unwrap_or_default();
    for part in path.split("::").map(str::trim) {
        match part {
            "crate" => at.clear(),
            "self" => {}
            "super" => drop(at.pop()),
            name => at.push(name.to_owned()),
        }
    }
    while !modules.contains(&at) {
        at.pop();
    }
    at
}

/// Imports between sibling modules of the crate whose sources are in `src`.
fn edges(src: &Path) -> Edges {
    let is_test = |file: &Path| {
        let relative = file.strip_prefix(src).expect("below src");
        relative
            .iter()
            .any(|part| matches!(part.to_string_lossy().as_ref(), "tests" | "tests.rs" | "testing.rs" | "main.rs"))
    };
    let files: Vec<_> = files(src, "rs").into_iter().filter(|file| !is_test(file)).collect();
    let modules: BTreeSet<Module> = files.iter().map(|file| module(src, file)).chain([Vec::new()]).collect();
    let mut edges = Edges::new();
    for file in files {
        let here = module(src, &file);
        for path in paths(&production(&read(&file))) {
            let there = target(&path, &here, &modules);
            let common = here.iter().zip(&there).take_while(|(a, b)| a == b).count();
            // Otherwise one is the other's ancestor.
            if common < here.len() && common < there.len() {
                let (from, to) = (here[..=common].to_vec(), there[..=common].to_vec());
                edges.entry((from, to)).or_insert_with(|| file.display().to_string());
            }
        }
    }
    edges
}

/// A circle among the edges, if there is one: modules of which each imports the next.
fn circle(edges: &Edges) -> Option<Vec<Module>> {
    let starts: BTreeSet<&Module> = edges.keys().map(|(from, _)| from).collect();
    for start in starts {
        // Breadth first, so that the shortest circle through `start` is found.
        let mut previous: BTreeMap<&Module, &Module> = BTreeMap::new();
        let mut queue = std::collections::VecDeque::from([start]);
        while let Some(at) = queue.pop_front() {
            for (_, to) in edges.keys().filter(|(from, _)| from == at) {
                if to == start {
                    let mut circle = vec![start.clone(), at.clone()];
                    let mut at = at;
                    while let Some(before) = previous.get(at) {
                        circle.push((*before).clone());
                        at = before;
                    }
                    circle.reverse();
                    return Some(circle);
                }
                if !previous.contains_key(to) {
                    previous.insert(to, at);
                    queue.push_back(to);
                }
            }
        }
    }
    None
}

#[test]
fn no_modules_import_each_other() {
    for member in MEMBERS {
        let src = root().join(member).join("src");
        let edges = edges(&src);
        if let Some(circle) = circle(&edges) {
            let step = |pair: &[Module]| {
                let file = &edges[&(pair[0].clone(), pair[1].clone())];
                format!("{} imports {} ({file})", pair[0].join("::"), pair[1].join("::"))
            };
            let steps: Vec<_> = circle.windows(2).map(step).collect();
            panic!("{member}: a circle of imports:\n{}", steps.join("\n"));
        }
    }
}

/// The commands of a program are no libraries for each other.
#[test]
fn a_command_is_imported_by_its_crate_alone() {
    let edges = edges(&root().join("trainer/src"));
    let commands = |module: &Module| module.first().is_some_and(|first| first == "commands");
    let into: Vec<_> = edges.iter().filter(|((_, to), _)| commands(to)).collect();
    assert!(into.is_empty(), "a command is imported: {into:?}");
}

#[test]
fn the_search_finds_a_circle_and_tells_children_from_siblings() {
    let folder = tempfile::tempdir().expect("a folder");
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        schemas::atomic::write(&path, text.as_bytes()).expect("a file");
    };
    write("lib.rs", "mod a; mod b; mod c;");
    write("a.rs", "mod inner; use crate::{b::{self, B}, c};");
    write("a/inner.rs", "use super::A; // crate::c\n#[cfg(test)]\nmod tests { use crate::c; }");
    write("b.rs", "fn f() { crate::c::g() }");
    write("c.rs", "");
    assert_eq!(circle(&edges(folder.path())), None);
    write("c.rs", "use crate::a::inner::Inner;");
    let found = circle(&edges(folder.path())).expect("a circle");
    assert_eq!(found.first(), found.last());
    assert!(found.iter().any(|m| m == &["a"]) && found.iter().any(|m| m == &["c"]), "{found:?}");
}
