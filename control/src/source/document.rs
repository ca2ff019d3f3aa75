//! Files into documents: splitting, reading the header, and finding the line of a field.

use std::ops::Range;

use serde::de::{DeserializeOwned, Deserializer, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, de};
use serde_saphyr::Spanned;

/// One document of a file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Document<'a> {
    /// Its place in the file, from 1.
    pub(super) number: usize,
    /// Line of the file at which it starts, from 1.
    pub(super) line: u64,
    /// Its text.
    pub(super) text: &'a str,
    /// Whether it is JSON.
    pub(super) json: bool,
    /// The list that it is an item of, and which: its text is then not the file's.
    pub(super) within: Option<(&'a Document<'a>, usize)>,
}

/// An item of a list, as a text of its own.
#[derive(Debug)]
pub(super) struct Item {
    /// Line of the file at which it starts, from 1.
    pub(super) line: u64,
    /// It, in JSON.
    pub(super) text: String,
}

/// A document that does not have the shape that its kind has.
#[derive(Debug)]
pub(super) struct Malformed {
    /// Line of the file, from 1.
    pub(super) line: u64,
    /// The field, if it is known.
    pub(super) field: String,
    /// What is wrong.
    pub(super) message: String,
}

/// What every Kubernetes object starts with.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Header {
    pub(super) api_version: String,
    pub(super) kind: String,
    pub(super) metadata: HeaderMetadata,
}

/// The part of the metadata that names an object.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct HeaderMetadata {
    pub(super) name: String,
    pub(super) namespace: Option<String>,
    pub(super) resource_version: Option<String>,
}

impl<'a> Document<'a> {
    /// A text that is one document in JSON.
    pub(super) fn json(text: &'a str) -> Self {
        Self {
            number: 1,
            line: 1,
            text,
            json: true,
            within: None,
        }
    }
}

/// The documents of a file; empty ones are left out.
pub(super) fn split(text: &str, json: bool) -> Vec<Document<'_>> {
    if json {
        return vec![Document::json(text)];
    }
    let mut documents = Vec::new();
    let mut push = |line: u64, range: Range<usize>| {
        let text = &text[range];
        if text
            .lines()
            .any(|line| !matches!(line.trim_start().chars().next(), None | Some('#' | '%')))
        {
            documents.push(Document {
                number: documents.len() + 1,
                line,
                text,
                json,
                within: None,
            });
        }
    };
    let (mut start, mut start_line) = (0, 1);
    let mut offset = 0;
    for (index, line) in text.split_inclusive('\n').enumerate() {
        // A document marker stands at the start of a line, whatever is around it.
        let marker =
            line.starts_with("---") && line[3..].chars().next().is_none_or(char::is_whitespace);
        if marker {
            push(start_line, start..offset);
            // What follows the marker on its line belongs to the document: keep it, without the marker.
            start = offset + 3;
            start_line = index as u64 + 1;
        }
        offset += line.len();
    }
    push(start_line, start..text.len());
    documents
}

impl Document<'_> {
    /// Reads the document as a type.
    pub(super) fn read<T: DeserializeOwned>(&self) -> Result<T, Malformed> {
        if self.json {
            return serde_json::from_str(self.text).map_err(|error| {
                let field = self.field_at(error.line() as u64);
                Malformed {
                    line: match self.within {
                        Some(_) => self.line_of(&field),
                        None => error.line() as u64,
                    },
                    field,
                    message: error.to_string(),
                }
            });
        }
        serde_saphyr::from_str_with_options(self.text, options()).map_err(|error| {
            let line = error
                .location()
                .map_or(1, |location| location.line().max(1));
            Malformed {
                line: self.line + line - 1,
                field: self.field_at(line),
                message: message(&error),
            }
        })
    }

    /// The items of a list; those that do not say what they are get version and kind from `header`.
    pub(super) fn items(&self, header: Option<(&str, &str)>) -> Result<Vec<Item>, Malformed> {
        #[derive(Deserialize)]
        struct List {
            items: Vec<serde_json::Value>,
        }
        let list: List = self.read()?;
        let root = self.tree();
        let places = root.as_ref().and_then(|root| root.value.step("items"));
        let item = |(index, mut item): (usize, serde_json::Value)| {
            if let (Some((version, kind)), Some(fields)) = (header, item.as_object_mut()) {
                fields.entry("apiVersion").or_insert(version.into());
                fields.entry("kind").or_insert(kind.into());
            }
            let place = places.and_then(|places| places.value.step(&index.to_string()));
            let line = match (place, self.within) {
                (Some(place), None) => self.line + place.defined.line().max(1) - 1,
                _ => self.line,
            };
            // Spread over lines, so that what is wrong with it has a line and thereby a field.
            let text = format!("{item:#}");
            Item { line, text }
        };
        Ok(list.items.into_iter().enumerate().map(item).collect())
    }

    /// The line of the file at which a field is, or the one of its closest parent that is there.
    pub(super) fn line_of(&self, field: &str) -> u64 {
        if let Some((list, index)) = self.within {
            return list.line_of(&format!("items[{index}].{field}"));
        }
        let mut line = 1;
        if let Some(root) = self.tree() {
            let mut node = &root;
            for step in steps(field) {
                let Some(next) = node.value.step(step) else {
                    break;
                };
                line = next.defined.line();
                node = next;
            }
        }
        self.line + line.max(1) - 1
    }

    /// The deepest field that starts on a line of the document.
    fn field_at(&self, line: u64) -> String {
        fn search(node: &Spanned<Tree>, line: u64, path: &str, found: &mut String) {
            if node.defined.line() == line && path.len() > found.len() {
                path.clone_into(found);
            }
            match &node.value {
                Tree::Scalar => {}
                Tree::Map(entries) => {
                    for (key, child) in entries {
                        let path = if path.is_empty() {
                            key.clone()
                        } else {
                            format!("{path}.{key}")
                        };
                        search(child, line, &path, found);
                    }
                }
                Tree::List(items) => {
                    for (index, child) in items.iter().enumerate() {
                        search(child, line, &format!("{path}[{index}]"), found);
                    }
                }
            }
        }
        let mut found = String::new();
        if let Some(root) = self.tree() {
            search(&root, line, "", &mut found);
        }
        found
    }

    fn tree(&self) -> Option<Spanned<Tree>> {
        serde_saphyr::from_str_with_options(self.text, options()).ok()
    }
}

/// Most nodes that aliases may stand for in a document: a few hundred bytes of them can stand for millions.
const MAX_ALIASED: usize = 20_000;

/// YAML as it is written for Kubernetes: `0644` is octal, as kubectl reads it. Unlike there, `yes` and `on` are no booleans:
/// where one is wanted they are refused, and where a string is wanted they are one, as most people mean them.
fn options() -> serde_saphyr::Options {
    let mut options = serde_saphyr::options! { strict_booleans: true, legacy_octal_numbers: true, with_snippet: false };
    options.alias_limits.max_total_replayed_events = MAX_ALIASED;
    options
}

/// What is wrong, without the place: that is reported in lines of the file.
fn message(error: &serde_saphyr::Error) -> String {
    let text = error.without_snippet().to_string();
    let line = text
        .lines()
        .next()
        .unwrap_or_default()
        .trim_start_matches("error: ");
    line.split(" at line ")
        .next()
        .unwrap_or_default()
        .to_owned()
}

/// `spec.ports[0].port` into `spec`, `ports`, `0`, `port`.
fn steps(field: &str) -> impl Iterator<Item = &str> {
    field.split(['.', '[', ']']).filter(|step| !step.is_empty())
}

/// A document without its meaning, for the lines of its fields.
enum Tree {
    Scalar,
    Map(Vec<(String, Spanned<Tree>)>),
    List(Vec<Spanned<Tree>>),
}

impl Tree {
    fn step(&self, step: &str) -> Option<&Spanned<Self>> {
        match self {
            Self::Scalar => None,
            Self::Map(entries) => entries
                .iter()
                .find(|(key, _)| key == step)
                .map(|(_, child)| child),
            Self::List(items) => step
                .parse::<usize>()
                .ok()
                .and_then(|index| items.get(index)),
        }
    }
}

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AnyNode;
        impl<'de> Visitor<'de> for AnyNode {
            type Value = Tree;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("any YAML")
            }
            fn visit_bool<E: de::Error>(self, _: bool) -> Result<Tree, E> {
                Ok(Tree::Scalar)
            }
            fn visit_i64<E: de::Error>(self, _: i64) -> Result<Tree, E> {
                Ok(Tree::Scalar)
            }
            fn visit_u64<E: de::Error>(self, _: u64) -> Result<Tree, E> {
                Ok(Tree::Scalar)
            }
            fn visit_f64<E: de::Error>(self, _: f64) -> Result<Tree, E> {
                Ok(Tree::Scalar)
            }
            fn visit_str<E: de::Error>(self, _: &str) -> Result<Tree, E> {
                Ok(Tree::Scalar)
            }
            fn visit_unit<E: de::Error>(self) -> Result<Tree, E> {
                Ok(Tree::Scalar)
            }
            fn visit_none<E: de::Error>(self) -> Result<Tree, E> {
                Ok(Tree::Scalar)
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Tree, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = list.next_element()? {
                    items.push(item);
                }
                Ok(Tree::List(items))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Tree, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Tree::Map(entries))
            }
        }
        deserializer.deserialize_any(AnyNode)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first_words(text: &str) -> Vec<(u64, &str)> {
        split(text, false)
            .iter()
            .map(|it| (it.line, it.text.split_whitespace().next().unwrap_or("")))
            .collect()
    }

    #[test]
    fn documents_are_split_at_markers_and_empty_ones_left_out() {
        assert_eq!(
            first_words("a: 1\n---\nb: 1\n--- # x\nc: 1\n"),
            [(1, "a:"), (2, "b:"), (4, "#")]
        );
        assert_eq!(first_words("# only a comment\n---\n---\na: 1"), [(3, "a:")]);
        assert_eq!(first_words(""), []);
        assert_eq!(
            first_words("a: |\n  ---\n  text\n---x: 1\n"),
            [(1, "a:")],
            "no marker inside text or words"
        );
    }

    #[test]
    fn a_field_is_found_by_its_path_and_by_its_line() {
        let text =
            "kind: x\n---\nspec:\n  ports:\n  - name: a\n    port: 80\n  - {name: b, port: bad}\n";
        let document = split(text, false)[1];
        assert_eq!(document.line_of("spec.ports[0].port"), 6);
        assert_eq!(document.line_of("spec.ports[1].port"), 7);
        assert_eq!(
            document.line_of("spec.ports[1].absent"),
            7,
            "the closest parent"
        );
        assert_eq!(document.line_of("elsewhere"), 2, "the document");
        assert_eq!(document.field_at(5), "spec.ports[0].port");
    }

    #[test]
    fn octals_are_what_kubectl_reads_and_yes_is_a_word() {
        #[derive(Deserialize)]
        struct Sample {
            on: String,
            mode: i32,
        }
        let text = "on: yes\nmode: 0644\n";
        let sample: Sample = split(text, false)[0].read().expect("valid");
        assert_eq!((sample.on.as_str(), sample.mode), ("yes", 0o644));
        let boolean = split("yes\n", false)[0].read::<bool>();
        assert!(boolean.is_err(), "{boolean:?}");
    }
}
