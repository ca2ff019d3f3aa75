//! How a program's lines come out, seen from outside: each test runs itself again as such a program.

use std::io::{BufRead as _, BufReader, Read as _, pipe};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc;

use nix::sys::resource::{Resource, setrlimit};

use super::super::{Format, serve};
use super::*;

/// Set for the child process.
const CHILD: &str = "TULLE_TEST_LOGGING_CHILD";
const LINES: u64 = 500;

/// Whether this is the child process of a test.
fn is_child() -> bool {
    std::env::var_os(CHILD).is_some()
}

/// Runs a test of these again, as a child process that logs to `stderr`.
fn child(test: &str, stderr: impl Into<Stdio>) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("this test"));
    let name = format!("trace::sink::tests::{test}");
    command
        .args(["--exact", "--nocapture", &name])
        .env(CHILD, "1")
        .env_remove("RUST_BACKTRACE")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(stderr);
    command
}

/// How a child ended, and what it logged.
fn run(test: &str) -> (ExitStatus, Vec<String>) {
    let (reader, stderr) = pipe().expect("a pipe");
    // The command keeps its end until it is dropped here.
    let mut running = child(test, stderr).spawn().expect("the child runs");
    let lines = BufReader::new(reader)
        .lines()
        .map(|line| line.expect("text"));
    let lines = lines.collect();
    (running.wait().expect("a child"), lines)
}

fn log_some() {
    (0..LINES).for_each(|number| tracing::info!("line number {number}."));
}

fn are_all_there(lines: &[String]) {
    let numbered: Vec<_> = lines
        .iter()
        .filter(|line| line.contains("line number"))
        .collect();
    assert_eq!(numbered.len() as u64, LINES);
    for (number, line) in numbered.iter().enumerate() {
        assert!(line.ends_with(&format!("line number {number}.")), "{line}");
    }
}

#[test]
fn every_line_is_written_in_order_when_a_program_ends() {
    if is_child() {
        let (handle, _written) = serve("info", Format::Text).expect("the only one");
        assert_eq!(handle.filter(), "info");
        return log_some();
    }
    let (status, lines) = run("every_line_is_written_in_order_when_a_program_ends");
    assert!(status.success(), "{lines:?}");
    are_all_there(&lines);
}

#[test]
fn every_line_is_written_before_a_panic_and_the_panic_is_told_after_them() {
    if is_child() {
        let (_, _written) = serve("info", Format::Text).expect("the only one");
        log_some();
        panic!("expected by the test");
    }
    let (status, lines) =
        run("every_line_is_written_before_a_panic_and_the_panic_is_told_after_them");
    assert!(!status.success());
    are_all_there(&lines);
    let last = |text: &str| lines.iter().rposition(|line| line.contains(text));
    assert!(last("panicked at") > last("line number"), "{lines:?}");
    assert!(last("expected by the test") > last("line number"));
}

/// Panics while another panic unwinds.
struct Unwinds;

impl Drop for Unwinds {
    fn drop(&mut self) {
        panic!("the second");
    }
}

#[test]
fn a_panic_that_ends_the_process_at_once_is_told_before() {
    if is_child() {
        setrlimit(Resource::RLIMIT_CORE, 0, 0).expect("no core is left behind");
        let (_, _written) = serve("info", Format::Text).expect("the only one");
        // More than the pipe takes, so that the thread is behind.
        let long = "x".repeat(400_000);
        tracing::info!(long, "line number 0.");
        let _unwinds = Unwinds;
        panic!("the first");
    }
    let (status, lines) = run("a_panic_that_ends_the_process_at_once_is_told_before");
    assert_eq!(status.signal(), Some(nix::libc::SIGABRT));
    let said = |text: &str| lines.iter().any(|line| line == text);
    assert!(said("the first") && said("the second"), "{lines:.200?}");
}

#[test]
fn the_last_word_of_a_program_stands_behind_its_lines() {
    if is_child() {
        let (_, written) = serve("info", Format::Text).expect("the only one");
        std::mem::forget(written);
        log_some();
        last_word("why it ends");
        std::process::exit(7);
    }
    let (status, lines) = run("the_last_word_of_a_program_stands_behind_its_lines");
    assert_eq!(status.code(), Some(7));
    are_all_there(&lines);
    assert_eq!(lines.last().map(String::as_str), Some("why it ends"));
}

#[test]
fn every_line_is_written_before_a_task_ends_the_process() {
    if is_child() {
        let (_, written) = serve("info", Format::Json).expect("the only one");
        std::mem::forget(written);
        log_some();
        exit(7);
    }
    let (status, lines) = run("every_line_is_written_before_a_task_ends_the_process");
    assert_eq!(status.code(), Some(7));
    assert_eq!(lines.len() as u64, LINES);
    let last = format!("\"message\":\"line number {}.\"", LINES - 1);
    assert!(lines.last().is_some_and(|line| line.contains(&last)));
}

#[test]
fn a_program_whose_log_nobody_reads_goes_on_ends_and_tells_what_is_missing() {
    if is_child() {
        let (_, written) = serve("info", Format::Text).expect("the only one");
        // More than the pipe and the queue take.
        let long = "x".repeat(1_000);
        (0..10_000).for_each(|number| tracing::info!(long, "line number {number}."));
        let mut registry = Registry::with_prefix("tulle");
        register(&mut registry);
        let metrics = crate::metrics::encode(&registry);
        let dropped = metrics
            .lines()
            .find_map(|line| line.strip_prefix("tulle_log_lines_dropped_total "));
        let dropped: u64 = dropped.and_then(|it| it.parse().ok()).expect(&metrics);
        assert!((7_000..10_000).contains(&dropped), "{dropped}");
        // Neither is seen, and neither may be waited for.
        let panic = std::panic::catch_unwind(|| panic!("nobody reads this"));
        assert!(panic.is_err());
        last_word("nor this");
        // The parent is told that this program was not held up, and reads then.
        println!("went on");
        io::stdin().read_line(&mut String::new()).expect("a word");
        return drop(written);
    }
    let name = "a_program_whose_log_nobody_reads_goes_on_ends_and_tells_what_is_missing";
    let (reader, stderr) = pipe().expect("a pipe");
    let (stdin, mut word) = pipe().expect("a pipe");
    let mut command = child(name, stderr);
    let mut running = command
        .stdin(stdin)
        .stdout(Stdio::piped())
        .spawn()
        .expect("the child runs");
    drop(command);
    let stdout = running.stdout.take().expect("a pipe");
    let (went_on, told) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            if line.contains("went on") {
                let _ = went_on.send(());
            }
        }
    });
    let told = told.recv_timeout(Duration::from_secs(60));
    if told.is_err() {
        running.kill().expect("it hangs");
    }
    told.expect("a program that logs waits for its reader");
    word.write_all(b"read\n").expect("it reads");
    let mut all = String::new();
    BufReader::new(reader)
        .read_to_string(&mut all)
        .expect("text");
    assert!(running.wait().expect("a child").success());
    let written = all.matches("line number").count();
    assert!((100..3_000).contains(&written), "{written}");
    let missing = format!(
        "lines were dropped here, because the log was not read fast enough lines={}",
        10_002 - written
    );
    let told = all.lines().find(|line| line.contains("were dropped"));
    assert!(all.contains(&missing), "not {missing}, but {told:?}");
}
