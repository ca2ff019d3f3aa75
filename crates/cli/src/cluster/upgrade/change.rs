//! What becomes of an object, and how that is shown.

use anstyle::{AnsiColor, Style};
use serde::Serialize;
use similar::{ChangeTag, TextDiff};

use crate::cluster::owned::Owned;
use crate::cluster::title;

/// Lines around a difference.
const CONTEXT: usize = 3;

const ADDED: Style = AnsiColor::Green.on_default();
const REMOVED: Style = AnsiColor::Red.on_default();
const HEAD: Style = Style::new().bold();

/// What becomes of an object.
#[derive(Debug, Serialize)]
pub(super) struct Change {
    pub(super) kind: String,
    pub(super) namespace: Option<String>,
    pub(super) name: String,
    pub(super) change: Verb,
    /// The object as YAML, as it is and as it would be.
    pub(super) before: String,
    pub(super) after: String,
}

/// What is done to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Verb {
    Create,
    Change,
    Delete,
}

impl Change {
    /// Of one that is wanted no more.
    pub(super) fn deleted(object: &Owned) -> Self {
        Self {
            kind: object.kind.clone(),
            namespace: object.namespace.clone(),
            name: object.name.clone(),
            change: Verb::Delete,
            before: String::new(),
            after: String::new(),
        }
    }

    /// Its lines that differ, with those around them.
    fn lines(&self) -> String {
        let title = title(&self.kind, self.namespace.as_deref(), &self.name);
        let mut text = format!("{HEAD}{title}{HEAD:#}");
        match self.change {
            Verb::Create => text += " (new)",
            Verb::Change => {}
            Verb::Delete => text += &format!(" {REMOVED}(deleted){REMOVED:#}"),
        }
        let diff = TextDiff::from_lines(&self.before, &self.after);
        for group in diff.grouped_ops(CONTEXT) {
            text += "\n  ...";
            for change in group.iter().flat_map(|op| diff.iter_changes(op)) {
                let (sign, style) = match change.tag() {
                    ChangeTag::Delete => ('-', REMOVED),
                    ChangeTag::Insert => ('+', ADDED),
                    ChangeTag::Equal => (' ', Style::new()),
                };
                let line = change.value().trim_end();
                text += &format!("\n{style}{sign} {line}{style:#}");
            }
        }
        text
    }
}

/// All of them, for people.
pub(super) fn table(changes: &[Change]) -> String {
    let lines: Vec<_> = changes.iter().map(Change::lines).collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(change: Verb, before: &str, after: &str) -> Change {
        Change {
            kind: "Service".to_owned(),
            namespace: Some("a".to_owned()),
            name: "b".to_owned(),
            change,
            before: before.to_owned(),
            after: after.to_owned(),
        }
    }

    #[test]
    fn only_what_differs_is_shown_with_its_neighbours() {
        let before: String = (0..20).map(|line| format!("line {line}\n")).collect();
        let after = before.replace("line 10\n", "line ten\n");
        let all = [
            change(Verb::Change, &before, &after),
            change(Verb::Create, "", "x: 1\n"),
            change(Verb::Delete, "", ""),
        ];
        let text = anstream::adapter::strip_str(&table(&all)).to_string();
        let changed = "Service a/b\n  ...\n  line 7\n  line 8\n  line 9\n- line 10\n+ line ten\n  line 11\n  line 12\n  line 13";
        let expected =
            format!("{changed}\nService a/b (new)\n  ...\n+ x: 1\nService a/b (deleted)");
        assert_eq!(text, expected);
    }

    #[test]
    fn programs_are_told_what_is_done_to_what() {
        let told = serde_json::to_value(change(Verb::Create, "", "x: 1\n")).expect("JSON");
        let expected = serde_json::json!({
            "kind": "Service", "namespace": "a", "name": "b", "change": "create", "before": "", "after": "x: 1\n",
        });
        assert_eq!(told, expected);
    }
}
