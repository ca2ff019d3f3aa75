//! One watched directory: whether the one that is watched is still the one at its path.
//!
//! The kernel watches directories, not paths: one that is moved away takes its watch along, one that is removed ends it,
//! and whatever comes in its place is watched by nobody. So the path is compared with what was watched.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use notify::{RecommendedWatcher, RecursiveMode, Watcher};

use crate::source::report::{Place, Problem};

/// A directory of manifests and what is known of its watch.
#[derive(Debug)]
pub(super) struct Directory {
    /// As it was named, made absolute: links on the way are followed anew each time.
    pub(super) path: PathBuf,
    /// The directory that is watched; `None` if there is none.
    watched: Option<Identity>,
}

/// What makes a directory this one and no other; numbers alone are given out again.
type Identity = (u64, u64, Option<SystemTime>);

/// Why a directory cannot be followed.
#[derive(Debug)]
pub(super) enum Lost {
    /// It cannot be listed.
    Unreadable(io::Error),
    /// The kernel would not watch it.
    Unwatchable(notify::Error),
}

/// What a look at a directory found.
#[derive(Debug)]
pub(super) enum Found {
    /// It is the one that is watched.
    Same,
    /// It is watched anew: everything in it has to be read.
    New,
    /// It cannot be followed now; with the problem to report.
    Lost(Problem),
}

impl Directory {
    /// Begins to watch a directory.
    pub(super) fn open(path: &Path, watcher: &mut RecommendedWatcher) -> Result<Self, Lost> {
        let mut directory = Self {
            path: std::path::absolute(path).map_err(Lost::Unreadable)?,
            watched: None,
        };
        directory.watch(watcher)?;
        Ok(directory)
    }

    /// Whether it is there at this moment.
    pub(super) fn is_there(&self) -> bool {
        identity(&self.path).is_ok()
    }

    /// Does not trust the watch any more.
    pub(super) fn doubt(&mut self) {
        self.watched = None;
    }

    /// Watches what is at the path now, if that is not watched already.
    pub(super) fn check(&mut self, watcher: &mut RecommendedWatcher) -> Found {
        let there = identity(&self.path).ok();
        if there.is_some() && there == self.watched {
            return Found::Same;
        }
        // What it watches may live on elsewhere; if it does not, there is nothing to end.
        let _ = watcher.unwatch(&self.path);
        self.watched = None;
        match self.watch(watcher) {
            Ok(()) => Found::New,
            Err(lost) => Found::Lost(self.problem(&lost)),
        }
    }

    fn watch(&mut self, watcher: &mut RecommendedWatcher) -> Result<(), Lost> {
        // Looked at first: if it is replaced before it is watched, the next look sees another one.
        let identity = identity(&self.path).map_err(Lost::Unreadable)?;
        watcher
            .watch(&self.path, RecursiveMode::NonRecursive)
            .map_err(Lost::Unwatchable)?;
        self.watched = Some(identity);
        Ok(())
    }

    fn problem(&self, lost: &Lost) -> Problem {
        let message = match lost {
            Lost::Unreadable(error) => format!(
                "source directory is gone or cannot be read ({error}): its last good objects stay in force; put it back, and it is read again"
            ),
            Lost::Unwatchable(error) => format!(
                "source directory cannot be watched ({error}): its last good objects stay in force; raise fs.inotify.max_user_watches"
            ),
        };
        Problem::of(Place::File(self.path.clone()), message)
    }
}

/// The directory at a path, if it can be listed.
fn identity(path: &Path) -> io::Result<Identity> {
    path.read_dir()?;
    let metadata = path.metadata()?;
    Ok((metadata.dev(), metadata.ino(), metadata.created().ok()))
}
