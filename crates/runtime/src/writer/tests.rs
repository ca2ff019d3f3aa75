//! Nobody waits for whoever reads, and what he does read is whole and in order.

use std::io::{BufRead as _, BufReader, Read as _, pipe};
use std::sync::atomic::AtomicBool;

use super::*;

/// Long enough for whatever does not hang.
const PATIENCE: Duration = Duration::from_secs(30);
const MOST: usize = 16 * 1024;

fn line(number: u64) -> Vec<u8> {
    format!("line {number} of a log that is read by somebody\n").into_bytes()
}

#[test]
fn a_pipe_that_nobody_reads_holds_nobody_up_and_what_was_lost_is_told_when_it_is_read_again() {
    let (reader, to) = pipe().unwrap();
    let (gaps, gap) = channel();
    let writer = Writer::new("log", to, MOST, move |lines| gaps.send(lines).unwrap()).unwrap();
    // More than the pipe takes.
    writer.write([&[b'x'; 1 << 17][..], b"\n"].concat(), 1);
    let (done, all) = channel();
    let hand_over = writer.clone();
    std::thread::spawn(move || {
        // Several times what the queue takes.
        (0..10_000).for_each(|number| hand_over.write(line(number), 1));
        done.send(()).unwrap();
    });
    all.recv_timeout(PATIENCE).expect("whoever writes waits");
    let dropped = writer.dropped().get();
    assert!((5_000..=10_000).contains(&dropped), "{dropped}");
    assert!(gap.try_recv().is_err(), "nothing is read yet");

    let lines = std::thread::spawn(move || BufReader::new(reader).lines().count() as u64);
    assert_eq!(gap.recv_timeout(PATIENCE).ok(), Some(dropped));
    writer.write(line(0), 1);
    writer.flush(PATIENCE);
    drop(writer);
    assert_eq!(lines.join().unwrap(), 10_001 - dropped + 1);
    assert!(gap.try_recv().is_err(), "it is told once");
}

#[test]
fn nothing_is_lost_or_moved_where_it_is_read() {
    let (mut reader, to) = pipe().unwrap();
    let writer = Writer::new("log", to, 1 << 30, |_| panic!("no gap")).unwrap();
    let reading = std::thread::spawn(move || {
        let mut all = Vec::new();
        reader.read_to_end(&mut all).unwrap();
        all
    });
    let expected: Vec<u8> = (0..20_000).flat_map(line).collect();
    (0..20_000).for_each(|number| writer.write(line(number), 1));
    writer.flush(PATIENCE);
    assert_eq!(writer.dropped().get(), 0);
    drop(writer);
    assert!(reading.join().unwrap() == expected);
}

#[test]
fn what_was_handed_over_is_written_when_the_flush_returns_and_a_stuck_reader_is_not_waited_for() {
    let (mut reader, to) = pipe().unwrap();
    let writer = Writer::new("log", to, MOST, |_| {}).unwrap();
    writer.write(line(1), 1);
    writer.flush(PATIENCE);
    let mut read = vec![0; line(1).len()];
    reader.read_exact(&mut read).unwrap();
    assert_eq!(read, line(1));

    writer.write(vec![b'x'; 1 << 20], 1);
    let begun = Instant::now();
    writer.flush(Duration::from_millis(50));
    assert!(begun.elapsed() < PATIENCE);
    // The thread must not outlive what it writes to.
    drop(reader);
}

#[test]
fn lines_to_a_reader_who_has_gone_are_counted() {
    let (reader, to) = pipe().unwrap();
    drop(reader);
    let writer = Writer::new("log", to, MOST, |_| panic!("it does not work")).unwrap();
    writer.write(line(1), 3);
    writer.flush(PATIENCE);
    assert_eq!(writer.dropped().get(), 3);
}

#[test]
fn what_waits_counts_as_the_memory_that_it_takes() {
    let (writer, jobs) = Writer::unattended(MOST);
    for _ in 0..100 {
        let mut batch = Vec::with_capacity(MOST / 8);
        batch.push(b'\n');
        writer.write(batch, 1);
    }
    drop(writer);
    assert_eq!(jobs.iter().count(), 8);
}

/// Somebody who has always more to say: a line comes for each that is written, until it is enough.
struct Steady {
    own: Receiver<Writer>,
    writer: Option<Writer>,
    enough: Arc<AtomicBool>,
}

impl Write for Steady {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let own = &self.own;
        let writer = self.writer.get_or_insert_with(|| own.recv().unwrap());
        if self.enough.load(Relaxed) {
            self.writer = None;
            return Err(std::io::ErrorKind::BrokenPipe.into());
        }
        writer.write(line(1), 1);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn who_waits_for_his_lines_does_not_wait_for_those_that_come_after_them() {
    let (give, own) = channel();
    let enough = Arc::new(AtomicBool::new(false));
    let steady = Steady {
        own,
        writer: None,
        enough: enough.clone(),
    };
    let writer = Writer::new("log", steady, MOST, |_| {}).unwrap();
    give.send(writer.clone()).unwrap();
    writer.write(line(0), 1);
    let begun = Instant::now();
    writer.flush(PATIENCE);
    assert!(begun.elapsed() < PATIENCE / 2, "it is never answered");
    enough.store(true, Relaxed);
}
