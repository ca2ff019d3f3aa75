//! Follows HTTP/1 requests through a stream of bytes, and finds what two readers could understand differently.
//!
//! A line that lies whole in the bytes at hand is looked at where it is; only one that a read has cut in two is put
//! together. Bodies are skipped, not looked at. What is refused is cut off in front of the byte that would complete it.

use memchr::memchr;

use super::REFUSED;
use crate::fields::{self, Trailer};

/// Longest line in front of a chunk.
const MAX_CHUNK_LINE: usize = 4 * 1024;
/// Longest body or chunk: what every reader can count, also with a sign.
const MAX_LENGTH: u64 = i64::MAX as u64;
/// Longest target that `http` can hold.
const MAX_TARGET: usize = u16::MAX as usize - 1;
/// Where a method ends, if a line begins with one.
const LONGEST_METHOD: usize = 64;
/// Why a head is refused that is longer than it may be ...
pub(super) const TOO_LARGE: &str = "a head that is too large";
/// ... or has more fields, ...
pub(super) const TOO_MANY: &str = "a head with too many fields";
/// ... or would be without its target.
pub(super) const TOO_LONG: &str = "a target that is too long";
pub(super) const BAD_HOST: &str = "a host that is none";

/// What to do with bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scan {
    /// All of them may go on.
    Pass,
    /// Those before `at` may go on, and nothing after them ever. `head` is where the refused head begins, if all of it
    /// is in these bytes.
    Refuse {
        at: usize,
        head: Option<usize>,
        why: &'static str,
    },
    /// Those before `at` may go on. They end a request for another protocol; the rest has not been looked at.
    Wait { at: usize },
}

/// Where in a stream of requests we are.
#[derive(Debug, Default)]
pub(super) struct Scanner {
    expect: Expect,
    /// Messages that have ended.
    messages: u32,
    /// Longest head, and longest line of a trailer.
    longest: usize,
    /// Most fields of a head.
    most: usize,
    /// Bytes of the head so far.
    taken: usize,
    /// The beginning of a line whose end has not come yet.
    line: Vec<u8>,
    head: Head,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Expect {
    #[default]
    RequestLine,
    Field,
    /// So many more bytes of a body or of a chunk of one.
    Data {
        left: u64,
        chunk: bool,
    },
    ChunkLine,
    ChunkEnd,
    Trailer,
}

/// What comes after something.
enum Next {
    Expect(Expect),
    /// Another message.
    Message,
}

/// What a request's head has said so far.
#[derive(Clone, Copy, Debug, Default)]
struct Head {
    http10: bool,
    fields: usize,
    host: bool,
    length: Option<u64>,
    chunked: bool,
    /// It asks for another protocol.
    switches: bool,
}

type Judged<T> = Result<T, &'static str>;

impl Scanner {
    /// At the beginning of a stream.
    pub(super) fn new(longest: usize, most: usize) -> Self {
        Self {
            longest,
            most,
            ..Self::default()
        }
    }

    /// The number of the message whose head has begun, but not ended.
    pub(super) fn open_head(&self) -> Option<u32> {
        let open = match self.expect {
            Expect::RequestLine => !self.line.is_empty(),
            Expect::Field => true,
            _ => false,
        };
        open.then_some(self.messages)
    }

    /// Whether what comes next belongs to a head.
    pub(super) fn in_head(&self) -> bool {
        matches!(self.expect, Expect::RequestLine | Expect::Field)
    }

    /// Messages that have ended.
    #[cfg(feature = "fuzz")]
    pub(super) fn messages(&self) -> u32 {
        self.messages
    }

    pub(super) fn scan(&mut self, bytes: &[u8]) -> Scan {
        let mut at = 0;
        let between = self.expect == Expect::RequestLine && self.line.is_empty();
        let mut head = between.then_some(0);
        while at < bytes.len() {
            let rest = &bytes[at..];
            let next = if let Expect::Data { left, chunk } = self.expect {
                let skipped = usize::try_from(left).unwrap_or(usize::MAX).min(rest.len());
                at += skipped;
                after_data(left - skipped as u64, chunk)
            } else {
                match self.line(rest) {
                    Ok(Some((end, next))) => {
                        at += end;
                        next
                    }
                    Ok(None) => return Scan::Pass,
                    Err((offset, why)) => {
                        let at = at + offset;
                        return Scan::Refuse { at, head, why };
                    }
                }
            };
            self.expect = match next {
                Next::Expect(expect) => expect,
                Next::Message => {
                    self.messages = self.messages.wrapping_add(1);
                    head = Some(at);
                    self.taken = 0;
                    Expect::RequestLine
                }
            };
            if matches!(self.expect, Expect::Data { .. } | Expect::ChunkLine) {
                head = None;
            }
            if matches!(next, Next::Message) && self.head.switches {
                return Scan::Wait { at };
            }
        }
        Scan::Pass
    }

    /// What the line means that `rest` goes on with, and where it ends. If it does not, `rest` is kept.
    fn line(&mut self, rest: &[u8]) -> Result<Option<(usize, Next)>, (usize, &'static str)> {
        let end = self.line_end(rest)?;
        if self.in_head() {
            let length = end.unwrap_or(rest.len());
            let room = self.longest - self.taken;
            if length > room {
                return Err((room, self.too_large(rest)));
            }
            self.taken += length;
        }
        let Some(end) = end else { return Ok(None) };
        match self.judge(&rest[..end]) {
            Ok(next) => Ok(Some((end, next))),
            // Without its line feed it is no line.
            Err(why) => Err((end - 1, why)),
        }
    }

    /// Why a head is refused that goes on with `rest`, and is too large: for its target, if not even that has ended.
    #[cold]
    fn too_large(&self, rest: &[u8]) -> &'static str {
        let mut begin = self.line.iter().chain(rest).take(LONGEST_METHOD);
        match self.expect {
            Expect::RequestLine if begin.any(|byte| *byte == b' ') => TOO_LONG,
            _ => TOO_LARGE,
        }
    }

    /// Where the line that `rest` goes on with ends, its CRLF included. If it does not, `rest` is kept.
    fn line_end(&mut self, rest: &[u8]) -> Result<Option<usize>, (usize, &'static str)> {
        let cut_after_cr = self.line.last() == Some(&b'\r');
        let end = memchr(b'\n', rest);
        let content = &rest[..end.unwrap_or(rest.len())];
        if cut_after_cr && !content.is_empty() {
            return Err((0, "bare carriage return"));
        }
        let cr = memchr(b'\r', content);
        if let Some(cr) = cr
            && cr + 1 < content.len()
        {
            return Err((cr + 1, "bare carriage return"));
        }
        let limit = match self.expect {
            Expect::ChunkLine => MAX_CHUNK_LINE,
            Expect::Trailer => self.longest,
            // What is too long is seen when it is added to the rest of the head.
            _ => usize::MAX,
        };
        if self.line.len() + content.len() > limit {
            return Err((0, "line too long"));
        }
        match end {
            Some(end) if cr.is_some() || cut_after_cr => Ok(Some(end + 1)),
            Some(end) => Err((end, "bare line feed")),
            None => {
                self.line.extend_from_slice(rest);
                Ok(None)
            }
        }
    }

    /// Judges the line that ends with `end`.
    fn judge(&mut self, end: &[u8]) -> Judged<Next> {
        if self.line.is_empty() {
            return self.judge_line(&end[..end.len() - 2]);
        }
        let mut line = std::mem::take(&mut self.line);
        line.extend_from_slice(end);
        self.judge_line(&line[..line.len() - 2])
    }

    fn judge_line(&mut self, line: &[u8]) -> Judged<Next> {
        match self.expect {
            Expect::RequestLine if line.is_empty() => Ok(Next::Expect(Expect::RequestLine)),
            Expect::RequestLine => {
                self.head = request_line(line)?;
                Ok(Next::Expect(Expect::Field))
            }
            Expect::Field if line.is_empty() => self.head.body(),
            Expect::Field => {
                self.head.fields += 1;
                if self.head.fields > self.most {
                    return Err(TOO_MANY);
                }
                self.head.field(line)?;
                Ok(Next::Expect(Expect::Field))
            }
            Expect::ChunkLine => Ok(Next::Expect(match chunk_size(line)? {
                0 => Expect::Trailer,
                left => Expect::Data { left, chunk: true },
            })),
            Expect::ChunkEnd if line.is_empty() => Ok(Next::Expect(Expect::ChunkLine)),
            Expect::ChunkEnd => Err("chunk longer than it says"),
            Expect::Trailer if line.is_empty() => Ok(Next::Message),
            Expect::Trailer => {
                trailer(line)?;
                Ok(Next::Expect(Expect::Trailer))
            }
            Expect::Data { .. } => unreachable!("data has no lines"),
        }
    }
}

impl Head {
    fn field(&mut self, line: &[u8]) -> Judged<()> {
        let (name, value) = field(line)?;
        let is = |other: &str| name.eq_ignore_ascii_case(other.as_bytes());
        match name.len() {
            4 if is("host") => {
                once(self.host, "more than one host")?;
                host(value)?;
                self.host = true;
            }
            7 if is("upgrade") => self.switches = true,
            14 if is("content-length") => {
                once(self.length.is_some(), "more than one content-length")?;
                self.length = Some(number(value)?);
            }
            17 if is("transfer-encoding") => {
                once(self.chunked, "more than one transfer-encoding")?;
                if !value.eq_ignore_ascii_case(b"chunked") {
                    return Err("a transfer-encoding other than chunked");
                }
                self.chunked = true;
            }
            _ => {}
        }
        Ok(())
    }

    /// The head is complete: what follows it?
    fn body(&self) -> Judged<Next> {
        match (self.chunked, self.length) {
            _ if !self.host && !self.http10 => Err("no host"),
            (true, Some(_)) => Err("content-length with transfer-encoding"),
            (true, None) if self.http10 => Err("transfer-encoding in HTTP/1.0"),
            (true, None) => Ok(Next::Expect(Expect::ChunkLine)),
            (false, None | Some(0)) => Ok(Next::Message),
            (false, Some(left)) => Ok(Next::Expect(Expect::Data { left, chunk: false })),
        }
    }
}

fn once(before: bool, why: &'static str) -> Judged<()> {
    if before { Err(why) } else { Ok(()) }
}

fn after_data(left: u64, chunk: bool) -> Next {
    match (left, chunk) {
        (0, true) => Next::Expect(Expect::ChunkEnd),
        (0, false) => Next::Message,
        _ => Next::Expect(Expect::Data { left, chunk }),
    }
}

/// What hyper checks itself is left to it: the method, most characters of the target, the version.
fn request_line(line: &[u8]) -> Judged<Head> {
    let (method, rest) = cut(b' ', line);
    let (target, version) = cut(b' ', rest);
    if method == REFUSED.as_bytes() {
        return Err("a method that is reserved");
    }
    if target.len() > MAX_TARGET {
        return Err(TOO_LONG);
    }
    if memchr(b'#', target).is_some() {
        return Err("a fragment in the target");
    }
    if !target.is_ascii() {
        return Err("a target with characters that are not encoded");
    }
    let switches = method == b"CONNECT";
    if target.first() != Some(&b'/') && !switches {
        other_form(method, target)?;
    }
    Ok(Head {
        http10: version == b"HTTP/1.0",
        switches,
        ..Head::default()
    })
}

/// A target that is no path (RFC 9112, 3.2.2 and 3.2.4).
fn other_form(method: &[u8], target: &[u8]) -> Judged<()> {
    if target == b"*" && method == b"OPTIONS" {
        return Ok(());
    }
    let after = |scheme: &str| {
        let (start, rest) = target.split_at_checked(scheme.len())?;
        start
            .eq_ignore_ascii_case(scheme.as_bytes())
            .then_some(rest)
    };
    let rest = after("http://").or_else(|| after("https://"));
    let rest = rest.ok_or("a target that is no path")?;
    let end = rest.iter().position(|byte| matches!(byte, b'/' | b'?'));
    let authority = &rest[..end.unwrap_or(rest.len())];
    if authority.is_empty() {
        return Err("a target without a host");
    }
    host(authority)
}

/// `uri-host [ ":" port ]` (RFC 9110, 7.2), which may be empty.
fn host(value: &[u8]) -> Judged<()> {
    let (name_is_good, port) = if value.first() == Some(&b'[') {
        let end = memchr(b']', value).ok_or(BAD_HOST)?;
        let address = std::str::from_utf8(&value[1..end]);
        let address = address.is_ok_and(|text| text.parse::<std::net::Ipv6Addr>().is_ok());
        (address, &value[end + 1..])
    } else {
        let end = memchr(b':', value).unwrap_or(value.len());
        let (name, port) = value.split_at(end);
        (name.iter().all(|byte| is_of_name(*byte)), port)
    };
    let port_is_good = match port.split_first() {
        None => true,
        Some((colon, digits)) => *colon == b':' && is_port(digits),
    };
    if name_is_good && port_is_good {
        Ok(())
    } else {
        Err(BAD_HOST)
    }
}

/// A port's number, or none (RFC 3986, 3.2.3).
pub(crate) fn is_port(digits: &[u8]) -> bool {
    let number = std::str::from_utf8(digits).ok();
    digits.iter().all(u8::is_ascii_digit)
        && (digits.is_empty() || number.is_some_and(|number| number.parse::<u16>().is_ok()))
}

/// What a registered name consists of (RFC 3986, 3.2.2).
fn is_of_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;=".contains(&byte)
}

fn cut(at: u8, bytes: &[u8]) -> (&[u8], &[u8]) {
    memchr(at, bytes).map_or((bytes, &[]), |end| (&bytes[..end], &bytes[end + 1..]))
}

fn field(line: &[u8]) -> Judged<(&[u8], &[u8])> {
    let colon = memchr(b':', line).ok_or("a field without a colon")?;
    let (name, value) = (&line[..colon], &line[colon + 1..]);
    match (name.first(), name.last()) {
        (Some(first), Some(last)) if !is_blank(*first) && !is_blank(*last) => {
            Ok((name, value.trim_ascii()))
        }
        _ => Err("a field without a name, or with space around it"),
    }
}

/// Trailers must not say what belongs into the head. Some are left out later.
fn trailer(line: &[u8]) -> Judged<()> {
    let (name, _) = field(line)?;
    match fields::trailer(name) {
        Trailer::Refused => Err(fields::REFUSED_TRAILER),
        Trailer::Passes | Trailer::Dropped => Ok(()),
    }
}

fn number(digits: &[u8]) -> Judged<u64> {
    const WHY: &str = "a content-length that is no number";
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return Err(WHY);
    }
    let digits = std::str::from_utf8(digits).map_err(|_| WHY)?;
    let number = digits.parse().map_err(|_| WHY)?;
    if number > MAX_LENGTH {
        Err(WHY)
    } else {
        Ok(number)
    }
}

fn chunk_size(line: &[u8]) -> Judged<u64> {
    const WHY: &str = "a chunk without a size";
    let end = line
        .iter()
        .position(|byte| !byte.is_ascii_hexdigit())
        .unwrap_or(line.len());
    let (digits, extension) = line.split_at(end);
    let extension = extension.trim_ascii_start();
    let bare = extension.is_empty() && end == line.len();
    if !bare && extension.first() != Some(&b';') {
        return Err(WHY);
    }
    if extension
        .iter()
        .any(|byte| byte.is_ascii_control() && *byte != b'\t')
    {
        return Err("a control character in a chunk extension");
    }
    let digits = std::str::from_utf8(digits).map_err(|_| WHY)?;
    let size = u64::from_str_radix(digits, 16).map_err(|_| WHY)?;
    if size > MAX_LENGTH {
        Err(WHY)
    } else {
        Ok(size)
    }
}

fn is_blank(byte: u8) -> bool {
    byte == b' ' || byte == b'\t'
}
