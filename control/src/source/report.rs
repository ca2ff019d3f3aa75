//! What a source could not use, and why.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

/// One thing that is wrong with one document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The file.
    pub file: PathBuf,
    /// Line in the file, from 1; 0 if the problem is the file itself.
    pub line: u64,
    /// Document in the file, from 1.
    pub document: usize,
    /// `Kind namespace/name`, as far as it could be read.
    pub object: String,
    /// The field, such as `spec.ports[0].port`; empty if it is not about one.
    pub field: String,
    /// What is wrong, with the value, and what to do.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if self.line > 0 {
            write!(f, ":{}", self.line)?;
        }
        if !self.object.is_empty() {
            write!(f, ": {}", self.object)?;
        }
        if !self.field.is_empty() {
            write!(f, ": {}", self.field)?;
        }
        write!(f, ": {}", self.message)
    }
}

/// What is wrong at the moment, for admin and metrics; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct SourceReport {
    files: Arc<Mutex<BTreeMap<PathBuf, Vec<Problem>>>>,
}

impl SourceReport {
    /// All problems, by file and line.
    #[must_use]
    pub fn problems(&self) -> Vec<Problem> {
        self.files.lock().values().flatten().cloned().collect()
    }

    /// How many problems there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.files.lock().values().map(Vec::len).sum()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// For sources: replaces the problems of a file, and gives those that it did not have before.
    pub fn replace(&self, file: &Path, problems: Vec<Problem>) -> Vec<Problem> {
        let mut files = self.files.lock();
        let before = files.remove(file).unwrap_or_default();
        let fresh = problems
            .iter()
            .filter(|problem| !before.contains(problem))
            .cloned()
            .collect();
        if !problems.is_empty() {
            files.insert(file.to_owned(), problems);
        }
        fresh
    }
}
