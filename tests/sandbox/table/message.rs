//! A strict reading of HTTP/1 (RFC 9112): what a message is, and nothing that another reader could take otherwise.
//!
//! The recording backend reads requests with it, the client answers, and the fuzzer what it sends. It knows nothing of
//! the proxy's own parsers, on purpose.

/// A message that is complete.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Message {
    /// The first line, as it came.
    pub(crate) start: String,
    /// Fields in their order, values without the space around them. What is no UTF-8 is replaced.
    pub(crate) fields: Vec<(String, String)>,
    /// The body without its framing.
    pub(crate) body: Vec<u8>,
    /// Fields after the body.
    pub(crate) trailers: Vec<(String, String)>,
}

/// What the beginning of some bytes is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Parsed {
    /// A message, and how many bytes it takes.
    Whole(Message, usize),
    /// The beginning of one; its head if that is complete.
    Part(Option<Message>),
    /// Nothing that a strict reader takes, and why.
    Garbage(&'static str),
}

/// Why reading stopped.
enum Stop {
    More(Option<Message>),
    Garbage(&'static str),
}

type Read<T> = Result<T, Stop>;

/// How long a body is.
enum Framing {
    None,
    Length(usize),
    Chunked,
    UntilEnd,
}

impl Message {
    /// The values of a field, joined by commas.
    pub(crate) fn field(&self, name: &str) -> Option<String> {
        let values: Vec<_> = self
            .fields
            .iter()
            .filter(|(field, _)| field.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
            .collect();
        (!values.is_empty()).then(|| values.join(", "))
    }

    /// Method and target of a request.
    pub(crate) fn request_line(&self) -> &str {
        self.start.rsplit_once(' ').map_or("", |(line, _)| line)
    }

    /// Status of a response.
    pub(crate) fn status(&self) -> u16 {
        let status = self.start.split(' ').nth(1);
        status.and_then(|status| status.parse().ok()).unwrap_or(0)
    }

    /// Whether a response with this status ends what is said to a request (RFC 9110, 15.2).
    pub(crate) fn is_final(status: u16) -> bool {
        !(100..200).contains(&status) || status == 101
    }

    fn has(&self, name: &str) -> usize {
        let fields = self.fields.iter();
        fields
            .filter(|(field, _)| field.eq_ignore_ascii_case(name))
            .count()
    }
}

/// Reads a request.
pub(crate) fn request(bytes: &[u8]) -> Parsed {
    let parse = || {
        let (start, at) = line(bytes, 0)?;
        check_request_line(&start)?;
        let old = start.ends_with(" HTTP/1.0");
        let (head, at) = head(bytes, start, at)?;
        if head.has("host") > 1 || head.has("host") == 0 && !old {
            return garbage("not one host");
        }
        let framing = match framing(&head)? {
            Framing::Chunked if old => return garbage("chunks in HTTP/1.0"),
            Framing::UntilEnd => Framing::None,
            framing => framing,
        };
        body(bytes, head, at, framing)
    };
    parsed(parse())
}

/// Reads a response, to a `HEAD` or to anything else; `ended` says that no more bytes will come.
pub(crate) fn response(bytes: &[u8], to_head: bool, ended: bool) -> Parsed {
    let parse = || {
        let (start, at) = line(bytes, 0)?;
        let mut words = start.splitn(3, ' ');
        let version = words.next();
        let status = words.next().unwrap_or_default();
        let digits = status.len() == 3 && status.bytes().all(|byte| byte.is_ascii_digit());
        if !matches!(version, Some("HTTP/1.1" | "HTTP/1.0")) || !digits || words.next().is_none() {
            return garbage("no status line");
        }
        let (head, at) = head(bytes, start, at)?;
        let bodiless = to_head || matches!(head.status(), 100..=199 | 204 | 304);
        let framing = if bodiless {
            Framing::None
        } else {
            framing(&head)?
        };
        match framing {
            Framing::UntilEnd if ended => {
                let mut message = head;
                message.body = bytes[at..].to_vec();
                Ok((message, bytes.len()))
            }
            Framing::UntilEnd => Err(Stop::More(Some(head))),
            framing => body(bytes, head, at, framing),
        }
    };
    parsed(parse())
}

/// All requests in a stream, and what is left after them.
pub(crate) fn requests(mut bytes: &[u8]) -> (Vec<Message>, Parsed) {
    let mut all = Vec::new();
    loop {
        // "At least one" empty line before a request is to be ignored (RFC 9112, 2.2).
        let mut skipped = bytes;
        while let Some(rest) = skipped.strip_prefix(b"\r\n") {
            skipped = rest;
        }
        match request(skipped) {
            Parsed::Whole(message, length) => {
                all.push(message);
                bytes = &skipped[length..];
            }
            rest => return (all, rest),
        }
    }
}

fn parsed(read: Read<(Message, usize)>) -> Parsed {
    match read {
        Ok((message, length)) => Parsed::Whole(message, length),
        Err(Stop::More(head)) => Parsed::Part(head),
        Err(Stop::Garbage(why)) => Parsed::Garbage(why),
    }
}

fn garbage<T>(why: &'static str) -> Read<T> {
    Err(Stop::Garbage(why))
}

fn line(bytes: &[u8], from: usize) -> Read<(String, usize)> {
    let rest = &bytes[from..];
    let end = rest
        .iter()
        .position(|byte| *byte == b'\n')
        .unwrap_or(rest.len());
    let content = &rest[..end];
    if let Some(cr) = content.iter().position(|byte| *byte == b'\r') {
        if cr + 1 < content.len() {
            return garbage("a bare carriage return");
        }
    } else if end < rest.len() {
        return garbage("a bare line feed");
    }
    if end == rest.len() {
        return Err(Stop::More(None));
    }
    let content = String::from_utf8_lossy(&content[..content.len() - 1]);
    Ok((content.into_owned(), from + end + 1))
}

fn check_request_line(line: &str) -> Read<()> {
    let words: Vec<_> = line.split(' ').collect();
    let [method, target, version] = words[..] else {
        return garbage("not three words");
    };
    if !matches!(version, "HTTP/1.1" | "HTTP/1.0") {
        return garbage("another version");
    }
    if method.is_empty() || !method.bytes().all(is_token) {
        return garbage("no method");
    }
    let printable = target.bytes().all(|byte| byte.is_ascii_graphic());
    if target.is_empty() || !printable || target.contains('#') {
        return garbage("no target");
    }
    let form = match method {
        "CONNECT" => !target.contains('/') && target.contains(':'),
        "OPTIONS" if target == "*" => true,
        _ => target.starts_with('/') || is_absolute(target),
    };
    if form {
        Ok(())
    } else {
        garbage("a target of no form")
    }
}

fn is_absolute(target: &str) -> bool {
    let scheme = target.split_once("://").map(|(scheme, _)| scheme);
    scheme.is_some_and(|scheme| {
        scheme.eq_ignore_ascii_case("http") || scheme.eq_ignore_ascii_case("https")
    })
}

fn head(bytes: &[u8], start: String, mut at: usize) -> Read<(Message, usize)> {
    let mut message = Message {
        start,
        ..Message::default()
    };
    loop {
        let (text, next) = line(bytes, at)?;
        at = next;
        if text.is_empty() {
            return Ok((message, at));
        }
        message.fields.push(field(&text)?);
    }
}

fn field(line: &str) -> Read<(String, String)> {
    let Some((name, value)) = line.split_once(':') else {
        return garbage("a field without a colon");
    };
    if name.is_empty() || !name.bytes().all(is_token) {
        return garbage("a field's name is no token");
    }
    if value
        .bytes()
        .any(|byte| byte.is_ascii_control() && byte != b'\t')
    {
        return garbage("a control character in a field");
    }
    let value = value.trim_matches([' ', '\t']);
    Ok((name.to_owned(), value.to_owned()))
}

fn framing(head: &Message) -> Read<Framing> {
    let length = head.field("content-length");
    let encoding = head.field("transfer-encoding");
    match (length, encoding) {
        (Some(_), Some(_)) => garbage("two framings"),
        (None, Some(encoding)) if encoding.eq_ignore_ascii_case("chunked") => Ok(Framing::Chunked),
        (None, Some(_)) => garbage("another encoding"),
        (Some(length), None) => {
            let digits = !length.is_empty() && length.bytes().all(|byte| byte.is_ascii_digit());
            match length.parse() {
                Ok(length) if digits => Ok(Framing::Length(length)),
                _ => garbage("a length that is no number"),
            }
        }
        (None, None) => Ok(Framing::UntilEnd),
    }
}

fn body(bytes: &[u8], mut message: Message, at: usize, framing: Framing) -> Read<(Message, usize)> {
    match framing {
        Framing::None | Framing::UntilEnd => Ok((message, at)),
        Framing::Length(length) if bytes.len() - at < length => Err(Stop::More(Some(message))),
        Framing::Length(length) => {
            message.body = bytes[at..at + length].to_vec();
            Ok((message, at + length))
        }
        Framing::Chunked => match chunks(bytes, &mut message, at) {
            Err(Stop::More(_)) => Err(Stop::More(Some(message))),
            Err(garbage) => Err(garbage),
            Ok(end) => Ok((message, end)),
        },
    }
}

fn chunks(bytes: &[u8], message: &mut Message, mut at: usize) -> Read<usize> {
    loop {
        let (size, next) = line(bytes, at)?;
        let (digits, extension) = match size.find(';') {
            Some(end) => size.split_at(end),
            None => (size.as_str(), ""),
        };
        let digits = if extension.is_empty() {
            digits
        } else {
            digits.trim_end_matches([' ', '\t'])
        };
        let hex = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        let controls = extension
            .bytes()
            .any(|byte| byte.is_ascii_control() && byte != b'\t');
        let length = match u64::from_str_radix(digits, 16) {
            Ok(length) if hex && !controls => length,
            _ => return garbage("a chunk without a size"),
        };
        at = next;
        if length == 0 {
            break;
        }
        let left = (bytes.len() - at) as u64;
        if left < length.saturating_add(2) {
            let rest = &bytes[at..];
            let over = usize::try_from(length).unwrap_or(usize::MAX);
            let ends_well = rest.get(over).is_none_or(|byte| *byte == b'\r');
            return if ends_well {
                Err(Stop::More(None))
            } else {
                garbage("a chunk longer than it says")
            };
        }
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        message.body.extend_from_slice(&bytes[at..at + length]);
        at += length;
        if &bytes[at..at + 2] != b"\r\n" {
            return garbage("a chunk longer than it says");
        }
        at += 2;
    }
    loop {
        let (text, next) = line(bytes, at)?;
        at = next;
        if text.is_empty() {
            return Ok(at);
        }
        message.trailers.push(field(&text)?);
    }
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}
