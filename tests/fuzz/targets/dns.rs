//! The sandbox's DNS.
//!
//! The input is a message, as a datagram or on a connection. Only a question is answered: with its own number and in the
//! same words, in one datagram of 512 bytes or cut to it, and never with an answer that would itself be answered. A name
//! that there is has no answer that says it does not exist.

#![no_main]

use std::sync::LazyLock;

use tulle_sandbox::fuzz::Dns;

/// Bytes of a message's head.
const HEAD: usize = 12;
/// Bytes of an answer over UDP.
const DATAGRAM: usize = 512;
/// The longest message of all.
const LONGEST: usize = 65_535;

const NO_ERROR: u8 = 0;
const NO_SUCH_NAME: u8 = 3;

static DNS: LazyLock<Dns> = LazyLock::new(|| {
    let ports = r#""ports": [{"name": "http", "port": 80}]"#;
    let many: Vec<String> = (0..60).map(|n| format!(r#""10.96.1.{n}""#)).collect();
    let many = format!(
        r#"{{"spec": {{"clusterIPs": [{}], {ports}}}}}"#,
        many.join(",")
    );
    let web = format!(r#"{{"spec": {{"clusterIP": "10.96.0.1", {ports}}}}}"#);
    let away = r#"{"spec": {"type": "ExternalName", "externalName": "example.org"}}"#;
    let services = [
        ("shop", "web", &*web),
        ("shop", "many", &*many),
        ("shop", "away", away),
    ];
    Dns::new(&services).expect("Services")
});

tulle_fuzz::target!(|data: &[u8]| {
    let data = &data[..data.len().min(LONGEST)];
    let udp = DNS.over_udp(data);
    if let Some(answer) = &udp {
        assert!(answer.len() <= DATAGRAM, "{} bytes", answer.len());
        answers(data, answer);
    }
    let tcp = DNS.over_tcp(data);
    assert!(udp.is_none() || tcp.is_some(), "it can be answered");
    if let Some(answer) = tcp {
        answers(data, &answer);
        let code = answer[3] & 15;
        if let Some(name) = name(data) {
            let known = ["web", "many", "away"].map(|it| format!("{it}.shop.svc.cluster.local."));
            let known = known.iter().any(|known| known.eq_ignore_ascii_case(&name));
            assert!(!known || code != NO_SUCH_NAME, "{name}");
        }
    }
});

fn answers(question: &[u8], answer: &[u8]) {
    let count = |message: &[u8], at: usize| u16::from_be_bytes([message[at], message[at + 1]]);
    assert!(question.len() >= HEAD && answer.len() >= HEAD);
    assert_eq!(answer[..2], question[..2], "its number");
    assert!(question[2] & 0x80 == 0 && answer[2] & 0x80 != 0);
    assert_eq!(answer[2] & 0x78, question[2] & 0x78, "what it asks for");
    assert_eq!(count(answer, 4), count(question, 4), "the questions");
    assert!(count(answer, 6) == 0 || answer[3] & 15 == NO_ERROR);
    assert!(DNS.over_udp(answer).is_none(), "an answer to an answer");
}

/// The name of the only question, if it is of plain letters.
fn name(message: &[u8]) -> Option<String> {
    let mut rest = message.get(HEAD..).filter(|_| message[4..6] == [0, 1])?;
    let mut name = String::new();
    loop {
        let (length, more) = rest.split_first()?;
        if *length == 0 {
            return Some(name);
        }
        let label = more.get(..usize::from(*length))?;
        if !label.iter().all(u8::is_ascii_alphanumeric) {
            return None;
        }
        name.push_str(std::str::from_utf8(label).ok()?);
        name.push('.');
        rest = &more[usize::from(*length)..];
    }
}
