//! Changes protobuf messages so that they stay messages.
//!
//! A changed byte in a protobuf message is mostly a wrong length, and everything behind it is lost. So a message is read
//! into fields without knowing its type, one of them is changed somewhere in the tree, and all is written again.

/// Deepest nesting that is read as messages.
const MAX_DEPTH: usize = 24;
/// Highest number that a new field gets.
const MAX_FIELD: u64 = 48;

#[derive(Clone, Debug)]
struct Field {
    number: u64,
    value: Value,
}

#[derive(Clone, Debug)]
enum Value {
    Varint(u64),
    Fixed([u8; 8]),
    Short([u8; 4]),
    Bytes(Vec<u8>),
    Message(Vec<Field>),
}

/// Changes a message in place; returns its new length. `change` changes a string of bytes likewise.
pub fn mutate(
    data: &mut [u8],
    size: usize,
    seed: u32,
    mut change: impl FnMut(&mut [u8], usize, usize) -> usize,
) -> usize {
    let mut rng = fastrand::Rng::with_seed(u64::from(seed));
    let fields = read(&data[..size], 0);
    let Some(mut fields) = fields.filter(|_| rng.u8(..) > 8) else {
        return change(data, size, data.len());
    };
    for _ in 0..=rng.usize(..3) {
        let donor = pick(&fields, &mut rng).cloned();
        alter(&mut fields, donor, &mut rng, &mut change);
    }
    let mut out = Vec::new();
    write(&fields, &mut out);
    if out.len() > data.len() {
        return size;
    }
    data[..out.len()].copy_from_slice(&out);
    out.len()
}

/// Changes one field, somewhere.
fn alter(
    fields: &mut Vec<Field>,
    donor: Option<Field>,
    rng: &mut fastrand::Rng,
    change: &mut impl FnMut(&mut [u8], usize, usize) -> usize,
) {
    let inner: Vec<_> = (0..fields.len())
        .filter(|at| matches!(fields[*at].value, Value::Message(_)))
        .collect();
    if let Some(at) = rng.choice(inner).filter(|_| rng.u8(..8) > 0)
        && let Value::Message(inner) = &mut fields[at].value
    {
        return alter(inner, donor, rng, change);
    }
    if fields.is_empty() || rng.u8(..6) == 0 {
        let field = donor
            .filter(|_| rng.bool())
            .unwrap_or_else(|| new_field(rng));
        let at = rng.usize(..=fields.len());
        return fields.insert(at, field);
    }
    let at = rng.usize(..fields.len());
    match rng.u8(..8) {
        0 => drop(fields.remove(at)),
        1 => {
            let twice = fields[at].clone();
            fields.push(twice);
        }
        2 => fields[at].number = 1 + rng.u64(..MAX_FIELD),
        _ => match &mut fields[at].value {
            Value::Varint(number) => *number = interesting(*number, rng),
            Value::Fixed(bytes) => {
                *bytes = interesting(u64::from_le_bytes(*bytes), rng).to_le_bytes()
            }
            Value::Short(bytes) => rng.fill(bytes),
            Value::Bytes(bytes) => {
                let size = bytes.len();
                bytes.resize(size + 32, 0);
                let size = change(bytes, size, size + 32);
                bytes.truncate(size);
            }
            Value::Message(inner) => inner.clear(),
        },
    }
}

fn new_field(rng: &mut fastrand::Rng) -> Field {
    let value = match rng.u8(..4) {
        0 => Value::Varint(interesting(0, rng)),
        1 => Value::Bytes(vec![b'a'; rng.usize(..4)]),
        2 => Value::Fixed(f64::to_le_bytes(rng.f64() * 200.0 - 50.0)),
        _ => Value::Message(Vec::new()),
    };
    Field {
        number: 1 + rng.u64(..MAX_FIELD),
        value,
    }
}

fn interesting(number: u64, rng: &mut fastrand::Rng) -> u64 {
    match rng.u8(..8) {
        0 => 0,
        1 => 1,
        2 => u64::MAX,
        3 => u64::from(u32::MAX),
        4 => 1 << rng.u8(..64),
        5 => rng.u64(..),
        6 => number.wrapping_add(1),
        _ => rng.u64(..70_000),
    }
}

/// Any field, at any depth.
fn pick<'f>(fields: &'f [Field], rng: &mut fastrand::Rng) -> Option<&'f Field> {
    let mut field = rng.choice(fields)?;
    while let Value::Message(inner) = &field.value {
        match rng.choice(inner).filter(|_| rng.u8(..4) > 0) {
            Some(deeper) => field = deeper,
            None => break,
        }
    }
    Some(field)
}

fn read(mut bytes: &[u8], depth: usize) -> Option<Vec<Field>> {
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes)?;
        let number = key >> 3;
        let value = match key & 7 {
            0 => Value::Varint(varint(&mut bytes)?),
            1 => Value::Fixed(*take(&mut bytes, 8)?.first_chunk()?),
            2 => {
                let length = usize::try_from(varint(&mut bytes)?).ok()?;
                nested(take(&mut bytes, length)?, depth)
            }
            5 => Value::Short(*take(&mut bytes, 4)?.first_chunk()?),
            _ => return None,
        };
        if number == 0 || number > 100_000_000 {
            return None;
        }
        fields.push(Field { number, value });
    }
    Some(fields)
}

/// What looks like a message is read as one, unless it looks like text even more.
fn nested(bytes: &[u8], depth: usize) -> Value {
    let text = bytes.iter().all(|byte| (b' '..=b'~').contains(byte));
    match read(bytes, depth + 1).filter(|_| depth < MAX_DEPTH && (!text || bytes.is_empty())) {
        Some(fields) => Value::Message(fields),
        None => Value::Bytes(bytes.to_vec()),
    }
}

fn take<'b>(bytes: &mut &'b [u8], length: usize) -> Option<&'b [u8]> {
    let (taken, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    Some(taken)
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let byte = take(bytes, 1)?[0];
        number |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(number);
        }
    }
    None
}

fn write(fields: &[Field], out: &mut Vec<u8>) {
    for field in fields {
        let key = |kind: u64| field.number << 3 | kind;
        match &field.value {
            Value::Varint(number) => {
                write_varint(key(0), out);
                write_varint(*number, out);
            }
            Value::Fixed(bytes) => {
                write_varint(key(1), out);
                out.extend_from_slice(bytes);
            }
            Value::Short(bytes) => {
                write_varint(key(5), out);
                out.extend_from_slice(bytes);
            }
            Value::Bytes(bytes) => write_bytes(key(2), bytes, out),
            Value::Message(fields) => {
                let mut inner = Vec::new();
                write(fields, &mut inner);
                write_bytes(key(2), &inner, out);
            }
        }
    }
}

fn write_bytes(key: u64, bytes: &[u8], out: &mut Vec<u8>) {
    write_varint(key, out);
    write_varint(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}

fn write_varint(mut number: u64, out: &mut Vec<u8>) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}
