//! What was found, and what to do about it.

use anstyle::{AnsiColor, Style};
use serde::Serialize;

use crate::cluster::error::ClusterError;
use crate::output;

/// Findings of one sort that are told one by one.
const FEW: usize = 20;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Level {
    /// As it should be.
    Ok,
    /// It works, and might be otherwise than it was meant.
    Warning,
    /// It cannot be told; whoever asks may not see it, for one.
    Unknown,
    /// It does not work.
    Error,
}

/// One thing that was looked at.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct Finding {
    pub(super) level: Level,
    /// What was looked at.
    pub(super) subject: String,
    /// How it is.
    pub(super) state: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) remedy: Option<String>,
}

/// Everything that was found.
#[derive(Debug, Default)]
pub(super) struct Findings {
    pub(super) all: Vec<Finding>,
    /// Whether something is under way that will end by itself.
    pub(super) unsettled: bool,
}

impl Findings {
    pub(super) fn ok(&mut self, subject: impl Into<String>, state: impl Into<String>) {
        self.push(Level::Ok, subject.into(), state.into(), None);
    }

    pub(super) fn warning(
        &mut self,
        subject: impl Into<String>,
        state: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        self.push(
            Level::Warning,
            subject.into(),
            state.into(),
            Some(remedy.into()),
        );
    }

    pub(super) fn error(
        &mut self,
        subject: impl Into<String>,
        state: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        self.push(
            Level::Error,
            subject.into(),
            state.into(),
            Some(remedy.into()),
        );
    }

    /// What will be otherwise before long: a warning, and nothing for one who waits to be content with.
    pub(super) fn unsettled(
        &mut self,
        subject: impl Into<String>,
        state: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        self.warning(subject, state, remedy);
        self.unsettled = true;
    }

    /// What could not be looked at. It may work all the same where whoever asks has no right to look, and there alone.
    pub(super) fn unknown(&mut self, subject: impl Into<String>, error: &ClusterError) {
        let level = match error {
            // That its node is away is a finding of its own.
            ClusterError::Forbidden { .. } | ClusterError::NodeAway { .. } => Level::Unknown,
            _ => Level::Error,
        };
        let remedy = error.next_step().into_owned();
        self.push(level, subject.into(), output::chain(error), Some(remedy));
    }

    /// What cannot be told as long as somebody is silent who may know.
    pub(super) fn unsure(
        &mut self,
        subject: impl Into<String>,
        state: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        let remedy = Some(remedy.into());
        self.push(Level::Unknown, subject.into(), state.into(), remedy);
    }

    fn push(&mut self, level: Level, subject: String, state: String, remedy: Option<String>) {
        self.all.push(Finding {
            level,
            subject,
            state,
            remedy,
        });
    }

    /// A finding for each, of which the first few are told.
    pub(super) fn few(
        &mut self,
        level: Level,
        found: impl IntoIterator<Item = (String, String)>,
        remedy: &str,
    ) {
        let mut more = 0_usize;
        for (count, (subject, state)) in found.into_iter().enumerate() {
            if count < FEW {
                self.push(level, subject, state, Some(remedy.to_owned()));
            } else {
                more += 1;
            }
        }
        if more > 0 {
            let state = format!("{more} more have the like");
            self.push(level, "others".to_owned(), state, Some(remedy.to_owned()));
        }
    }

    pub(super) fn worst(&self) -> Level {
        let levels = self.all.iter().map(|finding| finding.level);
        levels.max().unwrap_or(Level::Ok)
    }
}

const GOOD: Style = AnsiColor::Green.on_default();
const DOUBTFUL: Style = AnsiColor::Yellow.on_default();
const BAD: Style = AnsiColor::Red.on_default().bold();
const NEXT: Style = AnsiColor::Cyan.on_default();

/// A line a finding, and one a remedy.
pub(super) fn table(all: &[Finding]) -> String {
    let width = all.iter().map(|it| it.subject.chars().count()).max();
    let width = width.unwrap_or_default();
    let line = |finding: &Finding| {
        let (style, word) = match finding.level {
            Level::Ok => (GOOD, "ok"),
            Level::Warning => (DOUBTFUL, "warning"),
            Level::Unknown => (DOUBTFUL, "unknown"),
            Level::Error => (BAD, "error"),
        };
        let Finding { subject, state, .. } = finding;
        let mut line = format!("{style}{word:<7}{style:#}  {subject:<width$}  {state}");
        if let Some(remedy) = &finding.remedy {
            let indent = 7 + 2 + width + 2;
            line += &format!("\n{:indent$}{NEXT}next{NEXT:#}: {remedy}", "");
        }
        line
    };
    all.iter().map(line).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_not_be_seen_is_unknown_and_what_does_not_answer_is_an_error() {
        let what = || "look".to_owned();
        let reason = || "why".to_owned();
        for (error, level) in [
            (
                ClusterError::Forbidden {
                    what: what(),
                    permission: crate::cluster::refusal::Permission::to_forward("shop"),
                },
                Level::Unknown,
            ),
            (
                ClusterError::Unanswered {
                    what: what(),
                    reason: reason(),
                },
                Level::Error,
            ),
            (
                ClusterError::Refused {
                    what: what(),
                    reason: reason(),
                },
                Level::Error,
            ),
            (ClusterError::NoControlPlane, Level::Error),
        ] {
            let mut findings = Findings::default();
            findings.unknown("x", &error);
            let found = &findings.all[0];
            assert_eq!(found.level, level, "{found:?}");
            let remedy = found.remedy.as_deref().expect("a remedy");
            assert!(!remedy.contains("tulle check"), "in a circle: {remedy}");
        }
    }

    #[test]
    fn many_of_one_sort_are_counted_after_the_first_few() {
        for (count, told, last) in [(0, 0, ""), (FEW, FEW, "x"), (FEW + 3, FEW + 1, "3 more")] {
            let mut findings = Findings::default();
            let all = (0..count).map(|at| (format!("pod{at}"), "x".to_owned()));
            findings.few(Level::Warning, all, "do it");
            assert_eq!(findings.all.len(), told);
            let state = findings.all.last().map_or("", |it| it.state.as_str());
            assert!(state.starts_with(last), "{state}");
        }
    }

    #[test]
    fn findings_align_and_the_worst_counts() {
        let mut findings = Findings::default();
        assert_eq!(findings.worst(), Level::Ok);
        findings.ok("kubernetes", "1.36");
        findings.warning("a", "b", "c");
        assert_eq!(findings.worst(), Level::Warning);
        findings.error("x", "y", "z");
        assert_eq!(findings.worst(), Level::Error);
        let text = anstream::adapter::strip_str(&table(&findings.all)).to_string();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(
            lines,
            [
                "ok       kubernetes  1.36",
                "warning  a           b",
                "                     next: c",
                "error    x           y",
                "                     next: z",
            ]
        );
    }
}
