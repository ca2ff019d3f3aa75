//! What a source could not use, and why.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use prometheus_client::registry::Registry;
use tokio::time::Instant;

use super::awaited::Awaited;
use super::metrics::Metrics;
use crate::store::ObjectRef;

/// Where something is wrong.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// A file, or a directory of files.
    File(PathBuf),
    /// An object of an API server.
    Object(ObjectRef),
    /// All objects of one resource of an API server, such as `httproutes.gateway.networking.k8s.io`.
    Resource(Arc<str>),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Object(reference) => reference.fmt(f),
            Self::Resource(name) => f.write_str(name),
        }
    }
}

/// One thing that is wrong with one document or object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where.
    pub place: Place,
    /// Line in the file, from 1; 0 if the problem is the file itself, or if there is none.
    pub line: u64,
    /// Document in the file, from 1; 0 as for the line.
    pub document: usize,
    /// `Kind namespace/name`, as far as it could be read.
    pub object: String,
    /// The field, such as `spec.ports[0].port`; empty if it is not about one.
    pub field: String,
    /// What is wrong, with the value, and what to do.
    pub message: String,
}

impl Problem {
    /// Something that is wrong with a place as a whole.
    #[must_use]
    pub fn of(place: Place, message: String) -> Self {
        let object = match &place {
            Place::Object(reference) => reference.to_string(),
            Place::File(_) | Place::Resource(_) => String::new(),
        };
        Self {
            place,
            line: 0,
            document: 0,
            object,
            field: String::new(),
            message,
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.place.fmt(f)?;
        if self.line > 0 {
            write!(f, ":{}", self.line)?;
        }
        if !self.object.is_empty() && !matches!(self.place, Place::Object(_)) {
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
    places: Arc<Mutex<BTreeMap<Place, Vec<Problem>>>>,
    metrics: Metrics,
    awaited: Awaited,
    /// When somebody last told of failures, by their reason.
    told: Arc<Mutex<BTreeMap<&'static str, Instant>>>,
}

impl SourceReport {
    /// Registers what is counted about sources.
    pub fn register(&self, registry: &mut Registry) {
        self.metrics.register(registry);
    }

    /// What is counted about the watches of an API server.
    pub(super) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// What has not been read yet.
    pub(super) fn awaited(&self) -> &Awaited {
        &self.awaited
    }

    /// What has not been read yet, and why, to go on a sentence about that.
    #[must_use]
    pub fn unread(&self) -> String {
        self.awaited.to_string()
    }

    /// Whether failures are to be told that have this reason, which nobody has done for such a time.
    pub(super) fn may_tell(&self, reason: &'static str, time: Duration) -> bool {
        let mut told = self.told.lock();
        let due = told.get(reason).is_none_or(|told| told.elapsed() > time);
        if due {
            told.insert(reason, Instant::now());
        }
        due
    }

    /// One of a source that has read everything but one kind.
    #[cfg(test)]
    pub(crate) fn waiting_for(kind: crate::store::Kind) -> Self {
        let report = Self::default();
        report.awaited.wait_for(&[kind].into());
        report
    }

    /// All problems, by place and line.
    #[must_use]
    pub fn problems(&self) -> Vec<Problem> {
        self.places.lock().values().flatten().cloned().collect()
    }

    /// How many problems there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.places.lock().values().map(Vec::len).sum()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// For sources: replaces the problems of a place, and gives those that it did not have before.
    pub fn replace(&self, place: &Place, problems: Vec<Problem>) -> Vec<Problem> {
        let mut places = self.places.lock();
        let before = places.remove(place).unwrap_or_default();
        let fresh = problems
            .iter()
            .filter(|problem| !before.contains(problem))
            .cloned()
            .collect();
        if !problems.is_empty() {
            places.insert(place.clone(), problems);
        }
        fresh
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Kind, ObjectKey};

    #[test]
    fn problems_of_files_objects_and_resources_say_where_they_are() {
        let object = ObjectRef {
            kind: Kind::Service,
            key: ObjectKey::new("shop", "api"),
        };
        let table = [
            (
                Place::File("/s/a.yaml".into()),
                3,
                "/s/a.yaml:3: Service shop/api: spec.type: bad",
            ),
            (Place::Object(object), 0, "Service shop/api: spec.type: bad"),
            (
                Place::Resource("services".into()),
                0,
                "services: spec.type: bad",
            ),
        ];
        for (place, line, text) in table {
            let of_file = matches!(place, Place::File(_));
            let mut problem = Problem::of(place, "bad".to_owned());
            problem.line = line;
            problem.field = "spec.type".to_owned();
            if of_file {
                problem.object = "Service shop/api".to_owned();
            }
            assert_eq!(problem.to_string(), text);
        }
    }

    #[test]
    fn only_what_is_new_about_a_place_is_given_back() {
        let report = SourceReport::default();
        let place = Place::Resource("pods".into());
        let problem = |text: &str| Problem::of(place.clone(), text.to_owned());
        assert_eq!(report.replace(&place, vec![problem("a")]).len(), 1);
        let both = vec![problem("a"), problem("b")];
        assert_eq!(report.replace(&place, both), [problem("b")]);
        assert_eq!(report.len(), 2);
        assert!(report.replace(&place, Vec::new()).is_empty());
        assert!(report.is_empty());
    }
}
