//! The images that `deploy/Containerfile` describes, packed without a container engine.

use std::path::Path;

use anyhow::{Context as _, bail, ensure};
use tulle_cluster::Image;

/// What describes them.
const CONTAINERFILE: &str = include_str!("../../../deploy/Containerfile");
/// Where they are said to come from; their tag, and that of an earlier build.
pub(super) const REGISTRY: &str = "tulle.test";
pub(super) const TAG: &str = "1";
pub(super) const PREVIOUS_TAG: &str = "0";

/// Every image, of the programs in a folder.
pub(super) fn all(folder: &Path, tag: &str) -> anyhow::Result<Vec<Image>> {
    let mut stages: Vec<(String, Stage)> = Vec::new();
    let lines = CONTAINERFILE.lines().map(str::trim);
    for line in lines.filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let (instruction, rest) = line
            .split_once(' ')
            .context("an instruction has arguments")?;
        match (instruction, stages.last_mut()) {
            ("ARG", None) => {}
            ("FROM", _) => {
                let (_, name) = rest.split_once(" AS ").context("a stage has a name")?;
                stages.push((name.to_owned(), Stage::default()));
            }
            ("COPY", Some((name, stage))) => {
                let (from, to) = rest.split_once(' ').context("COPY has two arguments")?;
                ensure!(from == name, "{line}: not a program of ours");
                stage.programs.push((from.to_owned(), to.to_owned()));
            }
            ("USER", Some((_, stage))) => rest.clone_into(&mut stage.user),
            ("ENTRYPOINT", Some((_, stage))) => stage.entrypoint = serde_json::from_str(rest)?,
            _ => bail!("{line}: this instruction is not known here"),
        }
    }
    ensure!(stages.len() == 2, "{} stages", stages.len());
    let images = stages.into_iter();
    Ok(images
        .map(|(name, stage)| stage.image(&format!("{REGISTRY}/{name}:{tag}"), folder))
        .collect())
}

/// What a stage says.
#[derive(Debug, Default)]
struct Stage {
    /// Their names, and where they are in it.
    programs: Vec<(String, String)>,
    user: String,
    entrypoint: Vec<String>,
}

impl Stage {
    fn image(self, name: &str, folder: &Path) -> Image {
        let entrypoint: Vec<_> = self.entrypoint.iter().map(String::as_str).collect();
        let image = Image::new(name, &entrypoint).user(&self.user);
        let with = |image: Image, (program, path): &(String, String)| {
            image.program_at(folder.join(program), path)
        };
        self.programs.iter().fold(image, with)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    #[test]
    fn the_containerfile_is_understood() {
        let images = super::all(Path::new("/programs"), super::TAG).expect("two stages");
        let text = format!("{images:?}");
        for part in [
            "tulle.test/tulle:1",
            "tulle.test/tulle-proxy:1",
            "1337:1337",
        ] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
    }
}
