//! Which command builds what a cache lacks, for messages.

use std::path::Path;

use crate::{Cache, TeacherId, TeacherIdentity, layout};

impl Cache {
    /// The command that builds the samples of a part that is not finished, or a teacher's features of it, as a phrase that follows "run".
    pub fn builder_of(&self, part: u32, teacher: Option<&TeacherId>) -> String {
        let dir = self.dir().display();
        if let Some(teacher) = teacher.and_then(|id| self.teachers().get(id))
            && let Some(from) = self.more_exact(teacher)
        {
            let (id, codec) = (&teacher.id, teacher.codec.name());
            return format!(
                "`pipeline recode {dir} --teacher {} --codec {codec} --as {id}` if {id} was recoded, else the command that added it",
                from.id
            );
        }
        match (self.identity().generation_of(part), teacher) {
            (0, None) => format!("the same `pipeline build-cache` that began {dir}"),
            (0, Some(id)) => {
                format!("the same `pipeline build-cache`, or `pipeline add-teacher {dir}` if {id} was added later,")
            }
            (_, _) => format!("`pipeline add-images {dir}` with the images that it was given"),
        }
    }

    /// The same for a commit record or a part file, which is or would be at `path`; `None` for other files.
    pub fn builder_of_file(&self, path: &Path) -> Option<String> {
        let commit = layout::commit_of(path)?;
        let part = layout::part_number(commit.file_name()?.to_str()?, ".commit.json")?;
        let teacher = self.teachers().keys().find(|id| layout::teacher_commit(self.dir(), id, part) == commit);
        Some(self.builder_of(part, teacher))
    }

    /// The teacher that another one can have been recoded from: the same features in a codec that keeps more.
    pub fn more_exact(&self, teacher: &TeacherIdentity) -> Option<&TeacherIdentity> {
        // What is compared of two teachers, apart from name and codec.
        let network = |of: &TeacherIdentity| TeacherIdentity {
            id: teacher.id.clone(),
            codec: teacher.codec.clone(),
            source: String::new(),
            assumed: Vec::new(),
            device_name: None,
            ..of.clone()
        };
        let kept = teacher.codec.exactness();
        let same = |other: &&TeacherIdentity| other.codec.exactness() > kept && network(other) == network(teacher);
        self.teachers().values().filter(same).max_by_key(|other| other.codec.exactness())
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::Tiny;
    use crate::{Cache, Codec, TeacherIdentity, add_teacher, layout};

    #[test]
    fn the_command_is_named_that_builds_what_is_lacking() {
        let (dir, tiny) = (tempfile::tempdir().unwrap(), Tiny::usual());
        tiny.build(dir.path());
        let exact = TeacherIdentity { codec: Codec::F32, id: "exact".parse().unwrap(), ..tiny.teachers[0].clone() };
        let half = TeacherIdentity { codec: Codec::Bf16, id: "half".parse().unwrap(), ..exact.clone() };
        let other = TeacherIdentity { layer: "proj".into(), id: "other".parse().unwrap(), ..half.clone() };
        for teacher in [&exact, &half, &other] {
            add_teacher(dir.path(), teacher).unwrap();
        }
        let cache = Cache::open(dir.path()).unwrap();
        assert_eq!(cache.more_exact(&half).unwrap().id, exact.id);
        assert!(cache.more_exact(&exact).is_none());
        assert!(cache.more_exact(&other).is_none());
        assert!(cache.builder_of(0, None).contains("build-cache"));
        let recode = cache.builder_of(0, Some(&half.id));
        assert!(recode.contains("--teacher exact --codec bf16 --as half"), "{recode}");
        let added = cache.builder_of(0, Some(&other.id));
        assert!(added.contains("add-teacher") && !added.contains("recode"), "{added}");
        let of_file = |path: std::path::PathBuf| cache.builder_of_file(&path);
        assert_eq!(of_file(layout::teacher_file(dir.path(), &half.id, 0)), Some(recode));
        assert_eq!(of_file(layout::rejects_file(dir.path(), 0)), Some(cache.builder_of(0, None)));
        assert_eq!(of_file(layout::cache_json(dir.path())), None);
    }
}
