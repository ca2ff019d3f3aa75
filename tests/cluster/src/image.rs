//! Images of what is on this machine: programs with the libraries that they need, files, whole folders; packed as one layer
//! without a container engine (OCI image layout, github.com/opencontainers/image-spec).

use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use aws_lc_rs::digest::{Context as Digest, SHA256};
use serde_json::{Value, json};

use crate::machine::PATH;

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// An image to be.
#[derive(Debug, Clone)]
pub struct Image {
    name: String,
    entrypoint: Vec<String>,
    user: String,
    parts: Vec<Part>,
}

#[derive(Debug, Clone)]
enum Part {
    /// A file, and where it will be.
    File(PathBuf, PathBuf),
    /// As [`Part::File`], with what its loader looks for.
    Program(PathBuf, PathBuf),
    /// A folder, whose content will be in the root.
    Folder(PathBuf),
}

impl Image {
    /// An empty image. The name is one with a registry's and a tag other than `latest`, or nodes would try to fetch it.
    #[must_use]
    pub fn new(name: &str, entrypoint: &[&str]) -> Self {
        Self {
            name: name.to_owned(),
            entrypoint: entrypoint.iter().map(|&word| word.to_owned()).collect(),
            user: String::new(),
            parts: Vec::new(),
        }
    }

    /// Adds a program of this machine at the same path, with the libraries that it needs.
    #[must_use]
    pub fn program(self, path: impl AsRef<Path>) -> Self {
        let path = path.as_ref();
        self.program_at(path, path)
    }

    /// As [`Image::program`], at another path.
    #[must_use]
    pub fn program_at(self, from: impl AsRef<Path>, to: impl AsRef<Path>) -> Self {
        let part = Part::Program(from.as_ref().to_owned(), to.as_ref().to_owned());
        self.with(part)
    }

    /// Adds a file.
    #[must_use]
    pub fn file(self, from: impl AsRef<Path>, to: impl AsRef<Path>) -> Self {
        let part = Part::File(from.as_ref().to_owned(), to.as_ref().to_owned());
        self.with(part)
    }

    /// Adds what is in a folder, such as a root file system that somebody else has made.
    #[must_use]
    pub fn folder(self, from: impl AsRef<Path>) -> Self {
        let part = Part::Folder(from.as_ref().to_owned());
        self.with(part)
    }

    /// Who runs in it, `UID` or `UID:GID`; root if nobody is named.
    #[must_use]
    pub fn user(mut self, user: &str) -> Self {
        user.clone_into(&mut self.user);
        self
    }

    fn with(mut self, part: Part) -> Self {
        self.parts.push(part);
        self
    }

    /// Writes an archive that `ctr images import` reads; `work` is an empty folder to work in.
    pub(crate) fn pack(&self, work: &Path) -> Result<PathBuf> {
        self.try_pack(work)
            .with_context(|| format!("pack image {}", self.name))
    }

    fn try_pack(&self, work: &Path) -> Result<PathBuf> {
        let root = work.join("root");
        let blobs = work.join("layout/blobs/sha256");
        fs::create_dir_all(root.join("tmp"))?;
        fs::create_dir_all(&blobs)?;
        for part in &self.parts {
            part.place(&root)?;
        }
        fs::set_permissions(&root, Permissions::from_mode(0o755))?;
        fs::set_permissions(root.join("tmp"), Permissions::from_mode(0o1777))?;
        let layer = work.join("layer.tar");
        tar(&root, &layer)?;
        let layer = Blob::keep(&blobs, &layer)?;
        let config = Blob::write(&blobs, &self.config(&layer))?;
        let manifest = Blob::write(
            &blobs,
            &json!({
                "schemaVersion": 2,
                "mediaType": MANIFEST,
                "config": config.descriptor(CONFIG),
                "layers": [layer.descriptor(LAYER)],
            }),
        )?;
        let mut found = manifest.descriptor(MANIFEST);
        found["annotations"] = json!({
            // What containerd calls it.
            "io.containerd.image.name": self.name,
            "org.opencontainers.image.ref.name": self.name,
        });
        let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [found] });
        let layout = work.join("layout");
        fs::write(layout.join("index.json"), index.to_string())?;
        let version = json!({ "imageLayoutVersion": "1.0.0" });
        fs::write(layout.join("oci-layout"), version.to_string())?;
        let archive = work.join("image.tar");
        tar(&layout, &archive)?;
        Ok(archive)
    }

    fn config(&self, layer: &Blob) -> Value {
        json!({
            "architecture": match std::env::consts::ARCH {
                "x86_64" => "amd64",
                "aarch64" => "arm64",
                other => other,
            },
            "os": "linux",
            "config": {
                "Entrypoint": self.entrypoint,
                "Env": [format!("PATH={PATH}")],
                "User": self.user,
                "WorkingDir": "/",
            },
            "rootfs": { "type": "layers", "diff_ids": [layer.digest()] },
        })
    }
}

impl Part {
    fn place(&self, root: &Path) -> Result<()> {
        match self {
            Self::File(from, to) => copy(root, from, to),
            Self::Program(from, to) => {
                for library in libraries(from)? {
                    copy(root, &library, &library)?;
                }
                copy(root, from, to)
            }
            Self::Folder(from) => {
                let mut command = Command::new("cp");
                command.arg("-a").arg(from.join(".")).arg(root);
                run(command)
            }
        }
    }
}

fn copy(root: &Path, from: &Path, to: &Path) -> Result<()> {
    let to = root.join(to.strip_prefix("/").unwrap_or(to));
    if let Some(folder) = to.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::copy(from, &to).with_context(|| format!("copy {}", from.display()))?;
    Ok(())
}

/// What the loader would load for a program, itself included; nothing for a static one.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let output = Command::new("ldd")
        .arg(program)
        .output()
        .context("start ldd")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let absent = text.lines().find(|line| line.contains("not found"));
    ensure!(
        absent.is_none(),
        "{} needs {}: install it",
        program.display(),
        absent.unwrap_or_default().trim()
    );
    Ok(paths(&text))
}

/// The paths that ldd writes: `libc.so.6 => /lib/libc.so.6 (0x1)`, and `/lib64/ld-linux-x86-64.so.2 (0x2)`.
fn paths(said: &str) -> Vec<PathBuf> {
    let words = said.lines().filter_map(|line| {
        let line = line.split_once(" => ").map_or(line, |(_, path)| path);
        let (path, _) = line.trim().split_once(" (0x")?;
        path.starts_with('/').then(|| path.into())
    });
    words.collect()
}

/// The same archive for the same content.
fn tar(folder: &Path, archive: &Path) -> Result<()> {
    let mut command = Command::new("tar");
    command
        .args(["--create", "--sort=name", "--mtime=@0", "--numeric-owner"])
        .args(["--owner=0", "--group=0", "--file"])
        .arg(archive)
        .arg("--directory")
        .arg(folder)
        .arg(".");
    run(command)
}

fn run(mut command: Command) -> Result<()> {
    let output = command
        .output()
        .with_context(|| format!("start {:?}", command.get_program()))?;
    ensure!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// Content under its digest.
struct Blob {
    digest: String,
    size: u64,
}

impl Blob {
    fn write(blobs: &Path, content: &Value) -> Result<Self> {
        let file = blobs.join("new");
        fs::write(&file, content.to_string())?;
        Self::keep(blobs, &file)
    }

    /// Moves the file to where its digest says.
    fn keep(blobs: &Path, file: &Path) -> Result<Self> {
        let (digest, size) = digest(File::open(file)?)?;
        fs::rename(file, blobs.join(&digest))?;
        Ok(Self { digest, size })
    }

    fn digest(&self) -> String {
        format!("sha256:{}", self.digest)
    }

    fn descriptor(&self, kind: &str) -> Value {
        json!({ "mediaType": kind, "digest": self.digest(), "size": self.size })
    }
}

fn digest(mut content: impl io::Read) -> io::Result<(String, u64)> {
    let mut digest = Digest::new(&SHA256);
    let mut buffer = vec![0; 1 << 16];
    let mut size = 0;
    loop {
        match content.read(&mut buffer)? {
            0 => break,
            read => {
                digest.update(&buffer[..read]);
                size += read as u64;
            }
        }
    }
    let bytes = digest.finish();
    let text = bytes.as_ref().iter().map(|byte| format!("{byte:02x}"));
    Ok((text.collect(), size))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_loader_finds_is_read_and_the_rest_is_not() {
        let said = "\tlinux-vdso.so.1 (0x00007ffd)\n\tlibc.so.6 => /lib/x/libc.so.6 (0x00007f)\n\
            \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n\tnot a dynamic executable\n";
        let expected: [PathBuf; 2] = [
            "/lib/x/libc.so.6".into(),
            "/lib64/ld-linux-x86-64.so.2".into(),
        ];
        assert_eq!(paths(said), expected);
    }

    #[test]
    fn an_image_is_the_same_each_time_and_runs_where_there_is_nothing_else() {
        let work = [(); 2].map(|()| tempfile::tempdir().expect("a folder"));
        let image = Image::new("tulle.test/shell:1", &["/bin/sh"])
            .program("/bin/sh")
            .file("/etc/hostname", "/etc/name")
            .user("65532");
        let packed = work.each_ref().map(|work| {
            let archive = image.pack(work.path()).expect("packed");
            digest(File::open(archive).expect("an archive")).expect("read")
        });
        assert_eq!(packed[0], packed[1]);
        let root = work[0].path().join("root");
        assert!(root.join("etc/name").is_file());
        let loader = libraries(Path::new("/bin/sh")).expect("ldd");
        for library in &loader {
            let there = root.join(library.strip_prefix("/").expect("a path"));
            assert!(there.is_file(), "{library:?}");
        }
    }

    #[test]
    fn what_is_not_there_is_named() {
        let work = tempfile::tempdir().expect("a folder");
        let error = Image::new("tulle.test/none:1", &["/none"])
            .program("/no/such/program")
            .pack(work.path())
            .expect_err("there is none");
        let told = format!("{error:#}");
        for part in ["tulle.test/none:1", "/no/such/program"] {
            assert!(told.contains(part), "{told}");
        }
    }
}
