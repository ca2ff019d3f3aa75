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
    let images = stages()?.into_iter();
    Ok(images
        .map(|(name, stage)| stage.image(&format!("{REGISTRY}/{name}:{tag}"), folder))
        .collect())
}

/// The stages by name, each an image.
fn stages() -> anyhow::Result<Vec<(String, Stage)>> {
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
    Ok(stages)
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
    use std::fs;
    use std::os::unix::fs::MetadataExt as _;
    use std::path::Path;
    use std::process::Command;

    use serde_json::Value;

    use crate::gate::{self, Missing};

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

    /// Buildah with a storage of its own.
    fn buildah(storage: &Path, arguments: &[&str]) -> String {
        let mut command = Command::new("buildah");
        for (option, folder) in [("--root", "root"), ("--runroot", "run")] {
            command.arg(option).arg(storage.join(folder));
        }
        command.args(["--storage-driver", "vfs"]).args(arguments);
        let output = command.output().expect("it is there");
        let problem = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {problem}");
        String::from_utf8(output.stdout).expect("text")
    }

    #[test]
    fn buildah_makes_of_the_containerfile_what_is_packed_here() {
        match gate::require("buildah") {
            Ok(()) => {}
            Err(Missing::Skip(_)) => return,
            Err(Missing::Fail(reason)) => panic!("{reason}"),
        }
        let folder = tempfile::tempdir().expect("a folder");
        if fs::metadata(folder.path()).expect("it is there").uid() != 0 {
            // Others would have to look into their images from a user namespace.
            eprintln!("SKIP buildah: not root");
            return;
        }
        let context = folder.path().join("programs");
        fs::create_dir(&context).expect("a folder");
        let path = context.to_str().expect("text");
        let stages = super::stages().expect("two stages");
        for (name, _) in &stages {
            fs::write(context.join(name), name).expect("a program");
        }
        let file = folder.path().join("Containerfile");
        fs::write(&file, super::CONTAINERFILE).expect("a file");
        let file = file.to_str().expect("text");
        for (name, stage) in stages {
            let image = format!("{}/{name}:{}", super::REGISTRY, super::TAG);
            let stage_of = ["--build-arg", "BASE=scratch", "--target", &name];
            let build = ["build", "--isolation", "chroot", "-f", file, "-t", &image];
            buildah(folder.path(), &[&build[..], &stage_of, &[path]].concat());
            let said = buildah(folder.path(), &["inspect", "--type", "image", &image]);
            let said: Value = serde_json::from_str(&said).expect("JSON");
            let config = &said["OCIv1"]["config"];
            assert_eq!(config["User"], *stage.user, "{name}");
            assert_eq!(config["Entrypoint"], serde_json::json!(stage.entrypoint));
            let container = buildah(folder.path(), &["from", "--pull-never", &image]);
            let root = buildah(folder.path(), &["mount", container.trim()]);
            for (program, path) in &stage.programs {
                let within = Path::new(root.trim()).join(path.trim_start_matches('/'));
                let text = fs::read_to_string(within).expect("the program is in it");
                assert_eq!(text, *program);
            }
            buildah(folder.path(), &["umount", container.trim()]);
        }
    }
}
