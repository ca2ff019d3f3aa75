//! Directories over each other, files side by side: which object of several with one name counts.
//!
//! The later directory wins. Within one directory the first file by name keeps an object and every other definition of it
//! is a problem. A document that cannot be used leaves in force what its file said of the object before.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::document::{self, Document};
use super::parse::{self, Outcome};
use super::report::{self, Problem};
use crate::store::{Event, Object, ObjectRef};

/// Everything that the directories say.
#[derive(Debug, Default)]
pub(super) struct Layers {
    files: BTreeMap<Place, File>,
    /// Who defines an object: sorted by directory, file and position.
    claims: BTreeMap<ObjectRef, BTreeSet<(Place, usize)>>,
}

/// A file: its directory's rank and its path.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    /// Rank of the directory; the greater wins.
    pub(super) layer: usize,
    /// Path.
    pub(super) path: PathBuf,
}

impl Place {
    /// As it is named in the report.
    fn reported(&self) -> report::Place {
        report::Place::File(self.path.clone())
    }
}

#[derive(Debug, Default)]
struct File {
    objects: Vec<Defined>,
    problems: Vec<Problem>,
}

#[derive(Clone, Debug)]
struct Defined {
    reference: ObjectRef,
    object: Object,
    line: u64,
    document: usize,
}

/// What became of a file's change.
#[derive(Debug, Default)]
pub(super) struct Outcomes {
    /// What the store has to know.
    pub(super) events: Vec<Event>,
    /// The problems of every file whose problems may have changed.
    pub(super) problems: BTreeMap<report::Place, Vec<Problem>>,
}

impl Layers {
    /// The files of a directory that are known.
    pub(super) fn files_of(&self, layer: usize) -> Vec<PathBuf> {
        self.files
            .keys()
            .filter(|place| place.layer == layer)
            .map(|place| place.path.clone())
            .collect()
    }

    /// Takes in the text of a file.
    pub(super) fn set(&mut self, place: &Place, text: &str, outcomes: &mut Outcomes) {
        let before = self
            .files
            .get(place)
            .map(|file| file.objects.clone())
            .unwrap_or_default();
        let file = read(&place.path, text, &before);
        self.replace(place, Some(file), outcomes);
    }

    /// Notes that a file cannot be read; what it said stays in force.
    pub(super) fn unreadable(&mut self, place: &Place, message: String, outcomes: &mut Outcomes) {
        let objects = self
            .files
            .get(place)
            .map(|file| file.objects.clone())
            .unwrap_or_default();
        let problem = Problem::of(place.reported(), message);
        self.replace(
            place,
            Some(File {
                objects,
                problems: vec![problem],
            }),
            outcomes,
        );
    }

    /// Forgets a file.
    pub(super) fn remove(&mut self, place: &Place, outcomes: &mut Outcomes) {
        self.replace(place, None, outcomes);
    }

    fn replace(&mut self, place: &Place, file: Option<File>, outcomes: &mut Outcomes) {
        let before = self.files.remove(place).unwrap_or_default();
        let after = file.as_ref().map_or(&[][..], |file| &file.objects);
        let mut touched = BTreeSet::new();
        for (position, defined) in before.objects.iter().enumerate() {
            touched.insert(defined.reference.clone());
            if let Some(claims) = self.claims.get_mut(&defined.reference) {
                claims.remove(&(place.clone(), position));
            }
        }
        for (position, defined) in after.iter().enumerate() {
            touched.insert(defined.reference.clone());
            self.claims
                .entry(defined.reference.clone())
                .or_default()
                .insert((place.clone(), position));
        }
        if let Some(file) = file {
            self.files.insert(place.clone(), file);
        }
        let mut files = BTreeSet::from([place.clone()]);
        for reference in touched {
            files.extend(
                self.claims
                    .get(&reference)
                    .into_iter()
                    .flatten()
                    .map(|(place, _)| place.clone()),
            );
            outcomes.events.push(match self.winner(&reference) {
                Some(object) => Event::Apply(object.clone()),
                None => {
                    self.claims.remove(&reference);
                    Event::Delete(reference)
                }
            });
        }
        for place in files {
            outcomes
                .problems
                .insert(place.reported(), self.problems(&place));
        }
    }

    /// The object that counts: of the last directory, the first file.
    fn winner(&self, reference: &ObjectRef) -> Option<&Object> {
        let claims = self.claims.get(reference)?;
        let layer = claims.last()?.0.layer;
        let (place, position) = claims.iter().find(|(place, _)| place.layer == layer)?;
        self.files
            .get(place)?
            .objects
            .get(*position)
            .map(|defined| &defined.object)
    }

    fn problems(&self, place: &Place) -> Vec<Problem> {
        let Some(file) = self.files.get(place) else {
            return Vec::new();
        };
        let mut problems = file.problems.clone();
        for (position, defined) in file.objects.iter().enumerate() {
            let mut claims = self.claims.get(&defined.reference).into_iter().flatten();
            let first = claims.find(|(other, _)| other.layer == place.layer);
            let Some((first, _)) = first.filter(|first| **first != (place.clone(), position))
            else {
                continue;
            };
            problems.push(Problem {
                place: place.reported(),
                line: defined.line,
                document: defined.document,
                object: defined.reference.to_string(),
                field: "metadata.name".to_owned(),
                message: format!(
                    "is already defined in {}: remove one of the two",
                    first.path.display()
                ),
            });
        }
        problems.sort_by_key(|problem| (problem.line, problem.document));
        problems
    }
}

/// What the documents of a file that cannot be used were meant to be.
#[derive(Default)]
struct Lost {
    references: BTreeSet<ObjectRef>,
    /// Nobody can tell of one of them.
    nameless: bool,
}

impl File {
    /// Takes in a document, or each of a list.
    fn take(&mut self, path: &Path, document: &Document<'_>, lost: &mut Lost) {
        match parse::document(document) {
            Outcome::Ignored => {}
            Outcome::Object(object) => self.objects.push(Defined {
                reference: object.reference(),
                object,
                line: document.line,
                document: document.number,
            }),
            Outcome::List(items) => {
                for (index, item) in items.iter().enumerate() {
                    let item = Document {
                        number: document.number,
                        line: item.line,
                        text: &item.text,
                        json: true,
                        within: Some((document, index)),
                    };
                    self.take(path, &item, lost);
                }
            }
            Outcome::Bad {
                reference,
                object,
                problem,
            } => {
                lost.nameless |= reference.is_none();
                lost.references.extend(reference);
                self.problems.push(Problem {
                    place: report::Place::File(path.to_owned()),
                    line: problem.line,
                    document: document.number,
                    object,
                    field: problem.field,
                    message: problem.message,
                });
            }
        }
    }
}

/// Reads a file; what it defined before stays where a document of it cannot be used.
fn read(path: &Path, text: &str, before: &[Defined]) -> File {
    let mut file = File::default();
    let json = path
        .extension()
        .is_some_and(|extension| extension == "json");
    let mut lost = Lost::default();
    for document in document::split(text, json) {
        file.take(path, &document, &mut lost);
    }
    let kept = before
        .iter()
        .filter(|old| lost.nameless || lost.references.contains(&old.reference))
        .filter(|old| {
            !file
                .objects
                .iter()
                .any(|new| new.reference == old.reference)
        });
    let kept: Vec<_> = kept.cloned().collect();
    file.objects.extend(kept);
    file
}
