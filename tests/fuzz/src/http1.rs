//! A strict reader of HTTP/1 requests, for comparison.
//!
//! Written from RFC 9110 and 9112 without a look at the guard: every message whose framing two readers could understand
//! differently is refused. The grammar of request lines and fields is left to httparse.

/// Most fields of a head or trailer.
const MAX_FIELDS: usize = 100;

/// A request as a reader understood it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Message {
    /// Method.
    pub method: String,
    /// Target, as `http` writes it.
    pub target: String,
    /// Whether it is of HTTP/1.0.
    pub old: bool,
    /// Names (lower case) and values of the fields, sorted by name, those of one name in their order.
    pub fields: Vec<(String, Vec<u8>)>,
    /// Body.
    pub body: Vec<u8>,
    /// Trailers, like fields.
    pub trailers: Vec<(String, Vec<u8>)>,
}

impl Message {
    /// Whether its sender asks for another protocol.
    #[must_use]
    pub fn asks_to_switch(&self) -> bool {
        self.method == "CONNECT" || self.values("upgrade").next().is_some()
    }

    /// The values of a field.
    pub fn values<'m>(&'m self, name: &'m str) -> impl Iterator<Item = &'m [u8]> {
        let of_name = move |field: &&(String, Vec<u8>)| field.0 == name;
        self.fields
            .iter()
            .filter(of_name)
            .map(|(_, value)| &**value)
    }
}

/// What a stream holds.
#[derive(Debug, Default)]
pub struct Stream {
    /// The complete messages, each with the offset at which it ends.
    pub messages: Vec<(Message, usize)>,
    /// A message whose head is complete, but whose end has not come.
    pub open: Option<Message>,
    /// Why the stream is refused after these.
    pub refused: Option<&'static str>,
}

enum Step<T> {
    Done(T, usize),
    More,
    Refused(&'static str),
}

macro_rules! step {
    ($step:expr, $stream:ident) => {
        match $step {
            Step::Done(value, length) => (value, length),
            Step::More => return $stream,
            Step::Refused(why) => {
                $stream.refused = Some(why);
                return $stream;
            }
        }
    };
}

enum Framing {
    Length(usize),
    Chunked,
}

/// Reads requests until the bytes end, one is refused, or, if `switches`, until the first that asks for another protocol.
#[must_use]
pub fn read(bytes: &[u8], switches: bool) -> Stream {
    let mut stream = Stream::default();
    let mut at = 0;
    loop {
        while bytes[at..].starts_with(b"\r\n") {
            at += 2;
        }
        if at == bytes.len() {
            return stream;
        }
        let ((mut message, framing), length) = step!(head(&bytes[at..]), stream);
        at += length;
        stream.open = Some(message.clone());
        match framing {
            Framing::Length(length) => {
                let Some(body) = bytes[at..].get(..length) else {
                    return stream;
                };
                message.body = body.to_vec();
                at += length;
            }
            Framing::Chunked => {
                let ((body, trailers), length) = step!(chunks(&bytes[at..]), stream);
                (message.body, message.trailers) = (body, trailers);
                at += length;
            }
        }
        stream.open = None;
        let last = switches && message.asks_to_switch();
        stream.messages.push((message, at));
        if last {
            return stream;
        }
    }
}

fn head(bytes: &[u8]) -> Step<(Message, Framing)> {
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut request = httparse::Request::new(&mut fields);
    let length = match request.parse(bytes) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Step::More,
        Err(_) => return Step::Refused("no head"),
    };
    if let Some(why) = bare(&bytes[..length]) {
        return Step::Refused(why);
    }
    let message = Message {
        method: request.method.unwrap_or_default().to_owned(),
        target: normal(request.path.unwrap_or_default()),
        old: request.version == Some(0),
        fields: sorted(request.headers),
        ..Message::default()
    };
    if message.target.contains('#') {
        return Step::Refused("a fragment");
    }
    match framing(&message) {
        Ok(framing) => Step::Done((message, framing), length),
        Err(why) => Step::Refused(why),
    }
}

/// RFC 9112, 6.3, without any of its leniencies.
fn framing(message: &Message) -> Result<Framing, &'static str> {
    let mut hosts = message.values("host");
    match (hosts.next(), hosts.next()) {
        (None, _) if !message.old => return Err("no host"),
        (Some(_), Some(_)) => return Err("two hosts"),
        _ => {}
    }
    let mut lengths = message.values("content-length");
    let mut codings = message.values("transfer-encoding");
    match (
        lengths.next(),
        lengths.next(),
        codings.next(),
        codings.next(),
    ) {
        (None, _, None, _) => Ok(Framing::Length(0)),
        (Some(length), None, None, _) => {
            let digits = !length.is_empty() && length.iter().all(u8::is_ascii_digit);
            let text = std::str::from_utf8(length).ok().filter(|_| digits);
            let length: u64 = text
                .and_then(|text| text.parse().ok())
                .ok_or("a length that is none")?;
            Ok(Framing::Length(
                usize::try_from(length).unwrap_or(usize::MAX),
            ))
        }
        (None, _, Some(coding), None) if coding.eq_ignore_ascii_case(b"chunked") => {
            match message.old {
                true => Err("chunked in HTTP/1.0"),
                false => Ok(Framing::Chunked),
            }
        }
        _ => Err("more than one length"),
    }
}

/// The body and the trailers.
type Chunked = (Vec<u8>, Vec<(String, Vec<u8>)>);

fn chunks(bytes: &[u8]) -> Step<Chunked> {
    let mut body = Vec::new();
    let mut at = 0;
    loop {
        let Some(end) = bytes[at..].windows(2).position(|two| two == b"\r\n") else {
            return match bytes[at..].contains(&b'\n') {
                true => Step::Refused("a bare line feed"),
                false => Step::More,
            };
        };
        let Some(size) = chunk_size(&bytes[at..at + end]) else {
            return Step::Refused("a chunk without a size");
        };
        at += end + 2;
        if size == 0 {
            break;
        }
        let Some(data) = bytes[at..].get(..size) else {
            return Step::More;
        };
        body.extend_from_slice(data);
        at += size;
        match &bytes[at..] {
            [b'\r', b'\n', ..] => at += 2,
            [] | [b'\r'] => return Step::More,
            _ => return Step::Refused("a chunk that goes on"),
        }
    }
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    match httparse::parse_headers(&bytes[at..], &mut fields) {
        Ok(httparse::Status::Complete((length, fields))) => {
            if let Some(why) = bare(&bytes[at..at + length]) {
                return Step::Refused(why);
            }
            Step::Done((body, sorted(fields)), at + length)
        }
        Ok(httparse::Status::Partial) => Step::More,
        Err(_) => Step::Refused("no trailer"),
    }
}

/// RFC 9112, 7.1: hexadecimal digits, and perhaps extensions, in which no control character has a place.
fn chunk_size(line: &[u8]) -> Option<usize> {
    let end = line
        .iter()
        .position(|byte| matches!(byte, b';' | b' ' | b'\t'));
    let (digits, extension) = line.split_at(end.unwrap_or(line.len()));
    let blank = extension
        .iter()
        .take_while(|byte| matches!(byte, b' ' | b'\t'));
    let extension = &extension[blank.count()..];
    let control = |byte: &u8| byte.is_ascii_control() && *byte != b'\t';
    if end.is_some() && extension.first() != Some(&b';') || extension.iter().any(control) {
        return None;
    }
    let digits = std::str::from_utf8(digits).ok()?;
    if !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let size = u64::from_str_radix(digits, 16).ok()?;
    usize::try_from(size).ok()
}

/// Whether a line ends in anything but CRLF, or goes on in the next one.
fn bare(lines: &[u8]) -> Option<&'static str> {
    for (at, byte) in lines.iter().enumerate() {
        match byte {
            b'\n' if at == 0 || lines[at - 1] != b'\r' => return Some("a bare line feed"),
            b'\r' if lines.get(at + 1) != Some(&b'\n') => return Some("a bare carriage return"),
            _ => {}
        }
    }
    None
}

/// A target as `http` writes it, which a URI's scheme is in lower case in and which has a path.
fn normal(target: &str) -> String {
    target
        .parse::<http::Uri>()
        .map_or_else(|_| target.to_owned(), |uri| uri.to_string())
}

fn sorted(fields: &[httparse::Header<'_>]) -> Vec<(String, Vec<u8>)> {
    let owned =
        |field: &httparse::Header<'_>| (field.name.to_ascii_lowercase(), field.value.to_vec());
    let mut fields: Vec<_> = fields.iter().map(owned).collect();
    fields.sort_by(|one, other| one.0.cmp(&other.0));
    fields
}
