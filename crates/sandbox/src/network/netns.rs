//! A network namespace held open by a descriptor, and work done inside it on threads of its own.

use std::fs::File;
use std::future::Future;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use nix::sched::{CloneFlags, setns, unshare};
use tokio::sync::oneshot;

use crate::Error;

/// A network namespace. It lives as long as a clone of this, or a process in it.
#[derive(Debug, Clone)]
pub(crate) struct Netns(Arc<File>);

impl AsRawFd for Netns {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl Netns {
    /// A new namespace, in which `prepare` has run.
    pub(crate) async fn create(
        prepare: impl FnOnce() -> Result<(), Error> + Send + 'static,
    ) -> Result<Self, Error> {
        on_thread(move || {
            unshare(CloneFlags::CLONE_NEWNET)
                .map_err(Error::errno("create a network namespace"))?;
            prepare()?;
            let file = File::open("/proc/thread-self/ns/net");
            file.map_err(Error::io("open a network namespace"))
        })
        .await?
        .map(|file| Self(Arc::new(file)))
    }

    /// Where another process of the node finds it while this one lives.
    pub(crate) fn path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.as_raw_fd()).into()
    }

    /// Its name in the kernel's notation, such as `net:[4026531840]`.
    pub(crate) fn name(&self) -> Result<PathBuf, Error> {
        let inode = self.0.metadata().map(|metadata| metadata.ino());
        inode
            .map(|inode| format!("net:[{inode}]").into())
            .map_err(Error::io("name a network namespace"))
    }

    /// Runs the function inside and returns what it returns. A socket made there belongs to the namespace for good.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Error> {
        let netns = self.clone();
        on_thread(move || {
            setns(&*netns.0, CloneFlags::CLONE_NEWNET)
                .map_err(Error::errno("enter a network namespace"))?;
            Ok(work())
        })
        .await?
    }

    /// As [`Netns::run`], for work that waits.
    pub(crate) async fn run_async<T, F>(
        &self,
        work: impl FnOnce() -> F + Send + 'static,
    ) -> Result<T, Error>
    where
        T: Send + 'static,
        F: Future<Output = T>,
    {
        self.run(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            runtime
                .map(|runtime| runtime.block_on(work()))
                .map_err(Error::io("start a runtime in a network namespace"))
        })
        .await?
    }
}

/// A thread that has changed its namespace must not do anything else afterwards.
async fn on_thread<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Error> {
    let (done, result) = oneshot::channel();
    std::thread::Builder::new()
        .name("netns".to_owned())
        .spawn(move || done.send(work()))
        .map_err(Error::io("start a thread"))?;
    let gone = |_| io::Error::other("the thread ended without a result");
    result
        .await
        .map_err(gone)
        .map_err(Error::io("work in a network namespace"))
}
