//! Output of a container, kept in two files of limited size: the current one and the one before.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use nix::fcntl::OFlag;
use nix::unistd::pipe2;
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe;

/// A file that grows past this becomes the one before.
const LIMIT: u64 = 4 << 20;

/// The log of one container, over all its restarts.
#[derive(Debug, Clone)]
pub(crate) struct Log {
    current: PathBuf,
    before: PathBuf,
}

impl Log {
    pub(crate) fn new(path: PathBuf) -> Self {
        let before = path.with_extension("1");
        Self {
            current: path,
            before,
        }
    }

    /// Everything that is still kept.
    pub(crate) fn read(&self) -> Vec<u8> {
        let mut text = fs::read(&self.before).unwrap_or_default();
        text.extend(fs::read(&self.current).unwrap_or_default());
        text
    }

    /// The end that the container writes to, and the work that takes it in until the last writer is gone.
    pub(crate) fn writer(
        &self,
    ) -> io::Result<(OwnedFd, impl Future<Output = ()> + Send + 'static)> {
        let (read, write) = pipe2(OFlag::O_CLOEXEC)?;
        nix::fcntl::fcntl(&read, nix::fcntl::FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        let reader = pipe::Receiver::from_owned_fd(read)?;
        let log = self.clone();
        let work = async move {
            if let Err(error) = log.take_in(reader).await {
                tracing::warn!(%error, log = %log.current.display(), "output of a container is lost");
            }
        };
        Ok((write, work))
    }

    async fn take_in(&self, mut reader: pipe::Receiver) -> io::Result<()> {
        let mut file = File::options()
            .append(true)
            .create(true)
            .open(&self.current)?;
        let mut size = file.metadata()?.len();
        let mut buffer = vec![0; 16 << 10];
        loop {
            let length = reader.read(&mut buffer).await?;
            if length == 0 {
                return Ok(());
            }
            if size > LIMIT {
                fs::rename(&self.current, &self.before)?;
                file = File::options()
                    .append(true)
                    .create(true)
                    .open(&self.current)?;
                size = 0;
            }
            file.write_all(&buffer[..length])?;
            size += u64::try_from(length).unwrap_or(u64::MAX);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_newest_output_is_kept_and_the_size_is_limited() {
        let directory = tempfile::tempdir().expect("a directory");
        let log = Log::new(directory.path().join("c.log"));
        let (write, work) = log.writer().expect("a pipe");
        let writing = tokio::task::spawn_blocking(move || {
            let mut file = File::from(write);
            for _ in 0..4 {
                file.write_all(&vec![b'x'; 3 << 20]).expect("written");
            }
            file.write_all(b"the end").expect("written");
        });
        work.await;
        writing.await.expect("done");
        let kept = log.read();
        assert!(kept.ends_with(b"the end"));
        assert!(kept.len() < 10 << 20, "{}", kept.len());
    }
}
