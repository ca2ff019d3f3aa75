//! Directories of manifests, watched.
//!
//! Files end in `.yaml`, `.yml` or `.json`; dot-files and subdirectories are not read. A change re-reads its file only, when
//! its writer has closed it or renamed it into place, so nothing half-written is read and nothing needs to wait.
//! Everything that is ready at one moment becomes one update. A directory that goes away is reported, and what it said
//! stays in force until there is one at its path again.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use notify::event::{AccessKind, AccessMode, CreateKind};
use notify::{EventKind, RecommendedWatcher};
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;

use self::directory::{Directory, Found, Lost};

use super::layers::{Layers, Outcomes, Place};
use super::report::{self, Problem, SourceReport};
use super::stack;
use crate::store::StoreWriter;

mod directory;

/// Largest file that is read.
const MAX_FILE_SIZE: u64 = 16 << 20;
/// How often the directories are looked at: no event tells that one has come back, or that its parent was moved.
const LOOK: Duration = Duration::from_secs(1);

/// Why directories cannot be followed.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// One of them cannot be listed.
    #[error("source directory {path}: cannot be read; create it, or name another with --source")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The kernel would not watch it.
    #[error(
        "source directory {path}: cannot be watched; raise fs.inotify.max_user_instances or max_user_watches"
    )]
    Watch {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: notify::Error,
    },
}

/// Directories of manifests, of which the later win.
#[derive(Debug)]
pub struct FileSource {
    directories: Vec<Directory>,
    layers: Layers,
    report: SourceReport,
    changes: mpsc::UnboundedReceiver<Change>,
    /// Dropping it ends the changes.
    watcher: RecommendedWatcher,
}

/// What happened in a directory.
#[derive(Debug)]
enum Change {
    /// One file, or a whole directory, is new, other or gone.
    Path(PathBuf),
    /// Anything may have happened.
    Anything,
}

impl FileSource {
    /// Begins to watch the directories; nothing that happens from now on is missed.
    ///
    /// # Errors
    /// If a directory cannot be listed or watched.
    pub fn open(directories: Vec<PathBuf>) -> Result<Self, SourceError> {
        let (sender, changes) = mpsc::unbounded_channel();
        let handler = move |event: notify::Result<notify::Event>| {
            for change in changes_of(event) {
                // The receiver is gone when the source is: nobody is left to be told.
                let _ = sender.send(change);
            }
        };
        let first = directories.first().cloned().unwrap_or_default();
        let mut watcher =
            notify::recommended_watcher(handler).map_err(|source| SourceError::Watch {
                path: first,
                source,
            })?;
        let mut open = |path: PathBuf| match Directory::open(&path, &mut watcher) {
            Ok(directory) => Ok(directory),
            Err(Lost::Unreadable(source)) => Err(SourceError::Directory { path, source }),
            Err(Lost::Unwatchable(source)) => Err(SourceError::Watch { path, source }),
        };
        let directories = directories
            .into_iter()
            .map(&mut open)
            .collect::<Result<_, _>>()?;
        Ok(Self {
            directories,
            layers: Layers::default(),
            report: SourceReport::default(),
            changes,
            watcher,
        })
    }

    /// What is wrong with the manifests, now and later.
    #[must_use]
    pub fn report(&self) -> SourceReport {
        self.report.clone()
    }

    /// Reads everything, says that it has, and then follows the changes for ever.
    pub async fn run(mut self, mut writer: StoreWriter) {
        self.take_in(vec![Change::Anything], &mut writer);
        writer.set_synced();
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let mut batch = Vec::new();
            tokio::select! {
                change = self.changes.recv() => match change {
                    Some(change) => batch.push(change),
                    None => return,
                },
                _ = look.tick() => {}
            }
            while let Ok(more) = self.changes.try_recv() {
                batch.push(more);
            }
            self.take_in(batch, &mut writer);
        }
    }

    fn take_in(&mut self, batch: Vec<Change>, writer: &mut StoreWriter) {
        let mut places = BTreeSet::new();
        let mut everything = false;
        for change in batch {
            match change {
                Change::Path(path) => match self.directory(&path) {
                    Some(directory) => directory.doubt(),
                    None => places.extend(self.place(path)),
                },
                Change::Anything => everything = true,
            }
        }
        for layer in 0..self.directories.len() {
            if self.look_at(layer) || everything {
                places.extend(self.everything_of(layer));
            }
        }
        if places.is_empty() {
            return;
        }
        let outcomes = stack::deep(|| self.read_in(&places));
        for (place, problems) in outcomes.problems {
            self.note(&place, problems);
        }
        writer.apply(outcomes.events);
    }

    fn read_in(&mut self, places: &BTreeSet<Place>) -> Outcomes {
        let mut outcomes = Outcomes::default();
        for place in places {
            match read(&place.path) {
                Ok(Some(text)) => self.layers.set(place, &text, &mut outcomes),
                // With its whole directory, it was not taken back.
                Ok(None) if !self.directories[place.layer].is_there() => {}
                Ok(None) => self.layers.remove(place, &mut outcomes),
                Err(error) => self.layers.unreadable(place, error, &mut outcomes),
            }
        }
        outcomes
    }

    /// Looks whether a directory is the one that is watched; says whether everything in it has to be read.
    fn look_at(&mut self, layer: usize) -> bool {
        let directory = &mut self.directories[layer];
        let found = directory.check(&mut self.watcher);
        let path = directory.path.clone();
        match found {
            Found::Same => false,
            Found::New => {
                tracing::info!(directory = %path.display(), "another source directory is at its path; it is read");
                self.note(&report::Place::File(path), Vec::new());
                true
            }
            Found::Lost(problem) => {
                self.note(&report::Place::File(path), vec![problem]);
                false
            }
        }
    }

    /// Replaces the problems of a file or directory, and logs the new ones.
    fn note(&self, place: &report::Place, problems: Vec<Problem>) {
        for problem in self.report.replace(place, problems) {
            tracing::warn!(
                file = %problem.place,
                line = problem.line,
                document = problem.document,
                resource.name = %problem.object,
                field = %problem.field,
                error = %problem.message,
                "manifest not used; the last good version stays in force",
            );
        }
    }

    fn directory(&mut self, path: &Path) -> Option<&mut Directory> {
        self.directories
            .iter_mut()
            .find(|directory| directory.path == path)
    }

    fn place(&self, path: PathBuf) -> Option<Place> {
        if !is_manifest(&path) {
            return None;
        }
        let parent = path.parent()?;
        let layer = self
            .directories
            .iter()
            .rposition(|directory| directory.path == parent)?;
        Some(Place { layer, path })
    }

    /// Every file of a directory that is there, and every file that was; none while there is no directory.
    fn everything_of(&self, layer: usize) -> Vec<Place> {
        let Ok(listed) = self.directories[layer].path.read_dir() else {
            return Vec::new();
        };
        let listed = listed.flatten().map(|entry| entry.path());
        listed
            .filter(|path| is_manifest(path))
            .chain(self.layers.files_of(layer))
            .map(|path| Place { layer, path })
            .collect()
    }
}

fn changes_of(event: notify::Result<notify::Event>) -> Vec<Change> {
    let event = match event {
        Ok(event) if event.need_rescan() => return vec![Change::Anything],
        Ok(event) => event,
        Err(error) => {
            tracing::warn!(%error, "watching a source directory failed; everything is read again");
            return vec![Change::Anything];
        }
    };
    let settled = match event.kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write)) | EventKind::Remove(_) => true,
        EventKind::Modify(notify::event::ModifyKind::Name(_)) => true,
        // A new file is read when its writer closes it; links have no writer.
        EventKind::Create(CreateKind::File | CreateKind::Any | CreateKind::Other) => {
            event.paths.iter().any(|path| is_link(path))
        }
        _ => false,
    };
    if !settled {
        return Vec::new();
    }
    let mut changes = Vec::new();
    for path in event.paths {
        // A projected volume swaps this link, and with it every file.
        if path.file_name() == Some(OsStr::new("..data")) {
            changes.push(Change::Anything);
        } else {
            changes.push(Change::Path(path));
        }
    }
    changes
}

fn is_link(path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    path.symlink_metadata()
        .is_ok_and(|it| it.is_symlink() || (it.is_file() && it.nlink() > 1))
}

fn is_manifest(path: &Path) -> bool {
    let visible = path
        .file_name()
        .and_then(OsStr::to_str)
        .is_some_and(|name| !name.starts_with('.'));
    visible
        && matches!(
            path.extension().and_then(OsStr::to_str),
            Some("yaml" | "yml" | "json")
        )
}

/// The text of a file, `None` if there is none, or why it cannot be read.
fn read(path: &Path) -> Result<Option<String>, String> {
    let metadata = match path.metadata() {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(format!("cannot be read: {error}; check its permissions")),
    };
    if !metadata.is_file() {
        return Ok(None);
    }
    if metadata.len() > MAX_FILE_SIZE {
        return Err(format!(
            "has {} bytes: at most {MAX_FILE_SIZE} are read; split it",
            metadata.len()
        ));
    }
    match std::fs::read(path) {
        Ok(bytes) => String::from_utf8(bytes)
            .map(Some)
            .map_err(|_| "is not UTF-8: save it as UTF-8".to_owned()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(format!("cannot be read: {error}; check its permissions")),
    }
}

#[cfg(test)]
mod tests;
