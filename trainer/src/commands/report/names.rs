//! What runs are called side by side.

use std::path::Path;

/// For each path its last component, with as many of those before it as tell it from the others; a number where one path is given twice.
pub(super) fn name_apart(paths: &[&Path]) -> Vec<String> {
    // `..` and links mean what they point to; what does not exist keeps the name that it was given.
    let whole: Vec<Vec<String>> = paths
        .iter()
        .map(|path| {
            let found = path.canonicalize().or_else(|_| std::path::absolute(path));
            let found = found.unwrap_or_else(|_| path.to_path_buf());
            found.components().map(|part| part.as_os_str().to_string_lossy().into_owned()).collect()
        })
        .collect();
    let tail = |parts: &[String], n: usize| parts[parts.len().saturating_sub(n)..].join("/");
    let mut seen = Vec::new();
    whole
        .iter()
        .map(|parts| {
            let alone = (1..=parts.len()).find(|&n| {
                let name = tail(parts, n);
                whole.iter().filter(|other| tail(other, n) == name).count() == 1
            });
            let mut name = tail(parts, alone.unwrap_or(1));
            if alone.is_none() {
                let times = seen.iter().filter(|other| *other == parts).count();
                seen.push(parts.clone());
                name = format!("{} ({})", tail(parts, parts.len().min(2)), times + 1);
            }
            name
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(paths: &[&str]) -> Vec<String> {
        name_apart(&paths.iter().map(Path::new).collect::<Vec<_>>())
    }

    #[test]
    fn as_much_of_a_path_as_tells_it_from_the_others() {
        assert_eq!(names(&["/w/a", "/w/b"]), ["a", "b"]);
        assert_eq!(names(&["/x/run", "/y/run", "/y/other"]), ["x/run", "y/run", "other"]);
        assert_eq!(names(&["/p/x/run", "/q/x/run"]), ["p/x/run", "q/x/run"]);
        assert_eq!(names(&["/w/run", "/w/x/run"]), ["w/run", "x/run"]);
        assert_eq!(names(&["/x/run", "/x/run"]), ["x/run (1)", "x/run (2)"]);
        assert_eq!(names(&["gone"]), ["gone"]);
    }
}
