//! Waits until the sidecar beside it is ready: kubelet runs it as the sidecar's hook, and starts the app after that.
//!
//! A startup probe would do the same, but kubelet asks it once a second. While a hook runs kubelet does nothing else with the
//! pod, not even delete it, so a hook must not wait for long.

use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use tulle_runtime::names::ports;

/// Between two looks.
const LOOK: Duration = Duration::from_millis(10);
/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(1);
/// Bytes of an answer that are read.
const MOST: u64 = 4096;

/// Why the sidecar is not ready.
#[derive(Debug, thiserror::Error)]
#[error("the sidecar is not ready after {after:?}: {why}")]
pub struct NotReady {
    after: Duration,
    why: String,
}

/// The sidecar's own address.
#[must_use]
pub fn address() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, ports::READINESS).into()
}

/// Waits for readiness at an address, as long as `timeout`.
///
/// # Errors
/// What the sidecar said last, when its time is over.
pub fn wait(address: SocketAddr, timeout: Duration) -> Result<(), NotReady> {
    let begun = Instant::now();
    loop {
        let why = match ask(address) {
            Ok(None) => return Ok(()),
            Ok(Some(why)) => why,
            Err(error) => format!("it does not answer at {address} ({error})"),
        };
        if begun.elapsed() >= timeout {
            let after = timeout;
            return Err(NotReady { after, why });
        }
        std::thread::sleep(LOOK);
    }
}

/// Why it is not ready, if it is not.
fn ask(address: SocketAddr) -> io::Result<Option<String>> {
    let mut stream = TcpStream::connect_timeout(&address, ANSWER)?;
    stream.set_read_timeout(Some(ANSWER))?;
    stream.set_write_timeout(Some(ANSWER))?;
    // The connection ends with the answer.
    stream.write_all(b"GET /healthz/ready HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.take(MOST).read_to_string(&mut answer)?;
    let status = answer.split(' ').nth(1);
    if status == Some("200") {
        return Ok(None);
    }
    let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.trim());
    let why = body.filter(|body| !body.is_empty());
    Ok(Some(why.unwrap_or("it gives no answer of HTTP").to_owned()))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    /// Answers in turn, then no more.
    fn answering(answers: &'static [&'static str]) -> (SocketAddr, thread::JoinHandle<()>) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let serving = thread::spawn(move || {
            for answer in answers {
                let (mut stream, _) = listener.accept().unwrap();
                let mut head = [0; 64];
                let read = stream.read(&mut head).unwrap();
                assert!(head[..read].starts_with(b"GET /healthz/ready HTTP/1.0\r\n"));
                stream.write_all(answer.as_bytes()).unwrap();
            }
        });
        (address, serving)
    }

    #[test]
    fn it_waits_until_the_sidecar_is_ready() {
        let (address, serving) = answering(&[
            "HTTP/1.0 503 Service Unavailable\r\n\r\nnot ready: no certificate from the CA yet\n",
            "",
            "HTTP/1.0 200 OK\r\n\r\nready\n",
        ]);
        wait(address, Duration::from_secs(30)).unwrap();
        serving.join().unwrap();
    }

    #[test]
    fn when_its_time_is_over_it_says_what_the_sidecar_said() {
        let (address, serving) = answering(&[
            "HTTP/1.0 503 Service Unavailable\r\n\r\nnot ready: no certificate from the CA yet\n",
        ]);
        let error = wait(address, Duration::ZERO).unwrap_err().to_string();
        serving.join().unwrap();
        let expected =
            "the sidecar is not ready after 0ns: not ready: no certificate from the CA yet";
        assert_eq!(error, expected);
        let error = wait(address, Duration::ZERO).unwrap_err().to_string();
        assert!(
            error.contains("it does not answer at 127.0.0.1:"),
            "{error}"
        );
    }
}
