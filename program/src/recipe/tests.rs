use serde::Deserialize;

use super::*;

#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Recipe {
    name: String,
    run: Run,
    parts: BTreeMap<String, Part>,
}

#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Part {
    layer: String,
    device: String,
}

#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Run {
    steps: u64,
    device: Option<String>,
    scale: Vec<f64>,
}

fn read_with(text: &str, settings: &[Result<Setting, Error>]) -> Result<Recipe, String> {
    let settings: Vec<Setting> =
        settings.iter().map(|setting| setting.as_ref().expect("well-formed").clone()).collect();
    typed(text, "a.toml", &settings).map_err(|e| e.to_string())
}

#[test]
fn settings_lie_over_the_text() {
    let recipe = read_with(
        "name = \"n\"\n[run]\nsteps = 3\n",
        &[
            Setting::parse("run.device=cuda:1"),
            Setting::parse(" run.scale = [0.5, 1]"),
            Setting::flag("--steps", "run.steps", &7u64),
        ],
    )
    .unwrap();
    let run = Run { steps: 7, device: Some("cuda:1".into()), scale: vec![0.5, 1.0] };
    assert_eq!(recipe, Recipe { name: "n".into(), run, ..Recipe::default() });
    // A section that the text does not have; a text in quotes and without.
    let recipe = read_with("", &[Setting::parse("run.device='1'"), Setting::parse("name=a b")]).unwrap();
    assert_eq!((recipe.run.device.as_deref(), recipe.name.as_str()), (Some("1"), "a b"));
}

#[test]
fn a_table_sets_its_keys_and_forgets_the_text_s() {
    let table: toml::Table = toml::from_str("device = \"cpu\"").unwrap();
    let flag = || Setting::flag("--run x", "run", &table);
    let recipe = read_with("[run]\nsteps = 3\n", &[flag(), Setting::parse("run.scale=[1.0]")]).unwrap();
    assert_eq!((recipe.run.steps, recipe.run.device.as_deref()), (0, Some("cpu")));
    for set in ["run.device=cuda", "run=3"] {
        let error = read_with("", &[flag(), Setting::parse(set)]).unwrap_err();
        assert_eq!(error, format!("--set {set}: --run x says the same setting; give one of them"));
    }
}

#[test]
fn words_that_are_no_setting_are_refused() {
    for (typed, problem) in [
        ("run.steps", "has no '='; write it as section.key=value"),
        ("=3", "names no key"),
        ("run.=3", "names no key"),
        ("run.steps=9223372036854775808", "is a number beyond 2^63 - 1"),
        ("run={steps=3}", "is a table; set its keys one by one, as --set run.steps=VALUE"),
        ("run={}", "is a table; set its keys one by one, as --set run.name=VALUE"),
    ] {
        let error = Setting::parse(typed).unwrap_err().to_string();
        assert!(error.starts_with(&format!("--set {typed}: {problem}")), "{error}");
    }
    // Only the one key that was asked for.
    let recipe = read_with("", &[Setting::parse("run.steps=3\nname='x'")]).unwrap_err();
    assert!(recipe.contains("run.steps"), "{recipe}");
    let beyond = Setting::flag("--steps", "run.steps", &u64::MAX).unwrap_err();
    assert_eq!(beyond.to_string(), "run.steps = 18446744073709551615: must be less than 2^63");
    #[cfg(unix)]
    {
        use std::os::unix::ffi::OsStrExt;
        let path = Path::new(std::ffi::OsStr::from_bytes(b"\xff"));
        let not_text = Setting::flag("--out", "cache.out", &path).unwrap_err().to_string();
        assert!(not_text.ends_with(": must be text in UTF-8"), "{not_text}");
    }
}

#[test]
fn the_setting_that_is_wrong_is_named_and_not_the_file() {
    let text = "[run]\nsteps = 3\n";
    let wrong = |set: &str| read_with(text, &[Setting::parse("run.device=cpu"), Setting::parse(set)]).unwrap_err();
    assert!(wrong("run.stepz=4").starts_with("--set run.stepz=4: unknown key `stepz`"), "{}", wrong("run.stepz=4"));
    assert!(wrong("run.steps=many").starts_with("--set run.steps=many: "));
    assert_eq!(wrong("run.steps.x=4"), "--set run.steps.x=4: steps is not a section");
}

#[test]
fn an_unknown_key_is_said_to_be_where_it_is() {
    let wrong = |text: &str, set: &str| {
        let set: Vec<_> = [set].iter().filter(|set| !set.is_empty()).map(|set| Setting::parse(set)).collect();
        read_with(text, &set).unwrap_err()
    };
    for (set, ending) in [
        ("steps=4", "; there is run.steps"),
        ("parts.a.scale=4", "; there is run.scale"),
        ("run.layer=last", "; there is parts.ID.layer"),
        ("device=cpu", "; there is run.device and parts.ID.device"),
        ("run.stepz=4", "`steps`, `device`, `scale` in `run`"),
        ("run.name=4", "`steps`, `device`, `scale` in `run`"),
    ] {
        let error = wrong("", set);
        assert!(error.contains("unknown key") && error.ends_with(ending), "{error}");
    }
    let in_text = wrong("steps = 3\n", "");
    assert!(in_text.contains("line 1") && in_text.ends_with("; there is run.steps"), "{in_text}");
}

/// A mistake in the text is shown with its line, whatever is set besides; and a setting may correct it.
#[test]
fn a_wrong_text_is_shown_at_its_line() {
    let text = "name = \"n\"\n[run]\nsteps = \"many\"\n";
    for settings in [vec![], vec![Setting::parse("run.device=cpu")]] {
        let error = read_with(text, &settings).unwrap_err();
        assert!(error.starts_with("a.toml: ") && error.contains("line 3"), "{error}");
    }
    assert_eq!(read_with(text, &[Setting::parse("run.steps=4")]).unwrap().run.steps, 4);
    assert!(read_with("name = ", &[]).unwrap_err().starts_with("a.toml: "));
}

#[test]
fn two_values_for_one_setting_are_refused() {
    let twice = read_with("", &[Setting::parse("run.steps=1"), Setting::parse(" run.steps =2")]);
    assert_eq!(twice.unwrap_err(), "--set run.steps is given twice; give it once");
    let within = read_with("", &[Setting::parse("run.steps=1"), Setting::parse("run=2")]);
    assert_eq!(within.unwrap_err(), "--set run is given twice; give it once");
    let flag = || Setting::flag("--steps", "run.steps", &1u64);
    let set = || Setting::parse("run.steps=2");
    for pair in [[flag(), set()], [set(), flag()]] {
        let error = read_with("", &pair).unwrap_err();
        assert_eq!(error, "--set run.steps=2: --steps says the same setting; give one of them");
    }
}
