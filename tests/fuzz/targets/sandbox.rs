//! Manifest files, as the sandbox reads them.
//!
//! Whatever a file says, reading it again says the same, and what is wrong with it is said of a line that there is, in
//! words that are no longer than the file lets them be. What has a name in it has one, and no file has the same object
//! twice without two documents.

#![no_main]

use tulle_sandbox::fuzz::manifest;

/// Longest of what is said about a line, beside what it repeats of it.
const MAX_WORDS: usize = 4_096;

tulle_fuzz::target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let (objects, problems) = manifest(text);
    let lines = text.split('\n').count() as u64;
    for (line, problem) in &problems {
        assert!((1..=lines + 1).contains(line), "line {line} of {lines}");
        let most = MAX_WORDS + 10 * text.len();
        assert!(!problem.is_empty() && problem.len() <= most, "{problem}");
    }
    for (kind, key) in &objects {
        assert!(!key.name.is_empty(), "a {kind} without a name");
    }
    let documents = 1 + text.lines().filter(|line| line.starts_with("---")).count();
    assert!(objects.len() + problems.len() <= documents);
    assert_eq!(manifest(text), (objects, problems));
});
