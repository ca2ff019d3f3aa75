//! How programs that serve end, seen from outside: the test runs itself again as such a program.

use std::io::{ErrorKind, PipeReader, PipeWriter, Read as _, Write as _, pipe};
use std::process::{self, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use nix::fcntl::{FcntlArg, OFlag, fcntl};

use super::*;

/// Set for the child process: the command.
const CHILD: &str = "TULLE_TEST_UNREAD_CHILD";

/// An end of a pipe that takes nothing more, and the one that nobody reads.
fn full() -> (PipeReader, PipeWriter) {
    let (reader, writer) = pipe().expect("a pipe");
    let mark = |flags| fcntl(&writer, FcntlArg::F_SETFL(flags)).expect("it is open");
    mark(OFlag::O_NONBLOCK);
    let full = std::iter::repeat_with(|| (&writer).write(b"\n")).find_map(Result::err);
    assert_eq!(full.map(|error| error.kind()), Some(ErrorKind::WouldBlock));
    mark(OFlag::empty());
    (reader, writer)
}

const CONTROL: &str =
    "tulle control --source /nowhere --state-dir /nowhere --bundle-dir /nowhere --jwks /nowhere";

/// What a child says on standard output until it ends; `None` if it does not.
fn said(words: &str, stderr: impl Into<Stdio>) -> Option<String> {
    let name = "tests::a_program_that_serves_ends_although_nobody_reads_why";
    let mut command = process::Command::new(std::env::current_exe().expect("this test"));
    command.args(["--exact", "--nocapture", name]);
    command.env_clear().env(CHILD, words).stderr(stderr);
    let mut child = command.stdout(Stdio::piped()).spawn().expect("a child");
    let mut stdout = child.stdout.take().expect("a pipe");
    let (told, said) = mpsc::channel();
    std::thread::spawn(move || {
        let mut all = String::new();
        let _ = stdout.read_to_string(&mut all);
        let _ = told.send(all);
    });
    let said = said.recv_timeout(Duration::from_secs(30));
    let _ = child.kill();
    child.wait().expect("it runs");
    said.ok()
}

#[test]
fn a_program_that_serves_ends_although_nobody_reads_why() {
    if let Some(words) = std::env::var_os(CHILD) {
        let words = words.to_str().expect("text").split(' ');
        let status = run(words.map(OsString::from));
        println!("it has ended: {}", status == ExitCode::FAILURE);
        return;
    }
    // There is no POD_NAME, and no such directory.
    for words in ["tulle agent", CONTROL] {
        let (_unread, stderr) = full();
        let said = said(words, stderr).unwrap_or_else(|| panic!("{words} waits for its reader"));
        assert!(said.contains("it has ended: true"), "{words}: {said}");
        let (mut read, stderr) = pipe().expect("a pipe");
        self::said(words, stderr).expect("it ends");
        let mut why = String::new();
        read.read_to_string(&mut why).expect("text");
        assert!(
            why.contains("error: ") && why.contains("\nnext:  "),
            "{words}: {why}"
        );
    }
}

#[test]
fn every_command_has_a_manual_page() {
    let folder = tempfile::tempdir().expect("a directory");
    let pages = folder.path().join("man1");
    let words = ["tulle".into(), "man".into(), pages.clone().into_os_string()];
    run(words);
    for page in [
        "tulle.1",
        "tulle-install.1",
        "tulle-proxy-certs.1",
        "tulle-sandbox-up.1",
    ] {
        let text = std::fs::read_to_string(pages.join(page)).expect(page);
        assert!(text.contains(".SH NAME"), "{page}");
    }
}
