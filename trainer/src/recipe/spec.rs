//! How a network is named on the command line and in recipes.

use std::path::Path;

/// `[untrained:|ema:|unfused:|teacher:]NAME`, where prefixes may be combined and NAME is a path, a model's id on a hub, or `pixels[:SIZE]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Spec<'a> {
    /// As it was given.
    pub given: &'a str,
    pub name: &'a str,
    /// The student as its seed makes it, before any step.
    pub untrained: bool,
    /// A run's moving average.
    pub ema: bool,
    /// A student of multi-layer fusion without it.
    pub unfused: bool,
    /// The tower exactly as a frozen teacher has it, of files that a student could have too.
    pub teacher: bool,
}

impl<'a> Spec<'a> {
    /// Takes the prefixes off.
    pub(crate) fn parse(given: &'a str) -> Spec<'a> {
        let mut spec = Spec { given, name: given, untrained: false, ema: false, unfused: false, teacher: false };
        while let Some((prefix, rest)) = spec.name.split_once(':') {
            *match prefix {
                "untrained" => &mut spec.untrained,
                "ema" => &mut spec.ema,
                "unfused" => &mut spec.unfused,
                "teacher" => &mut spec.teacher,
                _ => break,
            } = true;
            spec.name = rest;
        }
        spec
    }

    /// The name as a path.
    pub(crate) fn path(&self) -> &'a Path {
        Path::new(self.name)
    }

    /// Whether it is the raw-pixel baseline.
    pub(crate) fn is_pixels(&self) -> bool {
        self.name == "pixels" || self.name.starts_with("pixels:")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_are_taken_off_in_any_order_and_the_rest_is_the_name() {
        let spec = Spec::parse("unfused:ema:runs/a:b");
        assert!(spec.unfused && spec.ema && !spec.untrained && !spec.teacher);
        assert_eq!(spec.name, "runs/a:b");
        assert!(Spec::parse("pixels:32").is_pixels() && Spec::parse("untrained:pixels").is_pixels());
        assert_eq!(Spec::parse("org/model").name, "org/model");
        assert_eq!(Spec::parse("untrained:").name, "");
    }
}
