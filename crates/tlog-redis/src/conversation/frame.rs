//! Where an answer ends: the second version of the protocol that servers speak (RESP2).

use std::io;

use redis::{RedisError, RedisResult, Value};

/// Longest string, and longest answer, that is taken: what a server has as its limit for one string.
const MOST: usize = 512 << 20;
/// Most values in one answer.
const MOST_VALUES: usize = 1 << 24;
/// What ends every line and every string.
const END: &[u8] = b"\r\n";
/// Bytes of the shortest value.
const SHORTEST: usize = 3;
/// Longest line: a server's error can be long.
const LONGEST_LINE: usize = 64 << 10;

/// How much of the next answer is there.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Extent {
    /// All of it: so many bytes.
    Whole(usize),
    /// At least so many bytes are missing.
    Missing(usize),
}

/// The extent of the answer that begins the bytes. An error where they are no answer.
pub(super) fn of(bytes: &[u8]) -> RedisResult<Extent> {
    let mut at = 0;
    // Values that are still to come: an array is as many more as it says.
    let mut values: usize = 1;
    while values > 0 {
        values -= 1;
        let rest = bytes.get(at..).unwrap_or_default();
        let Some(&kind) = rest.first() else { return Ok(missing(SHORTEST, values)) };
        if !b"+-:$*".contains(&kind) {
            return Err(garbled("it is no answer of a Redis server"));
        }
        let Some(line) = line(rest) else {
            let garbage = rest.len() > LONGEST_LINE;
            return if garbage { Err(garbled("a line of it has no end")) } else { Ok(missing(1, values)) };
        };
        at += line.len() + END.len();
        match kind {
            // Nil has a length of -1.
            b'$' => {
                if let Some(length) = length(line, MOST)? {
                    at += length + END.len();
                    if bytes.get(at - END.len()..at).is_some_and(|end| end != END) {
                        return Err(garbled("a string in it is longer than it says"));
                    }
                }
            }
            b'*' => values += length(line, MOST_VALUES)?.unwrap_or(0),
            _ => {}
        }
        if at > MOST || values > MOST_VALUES {
            return Err(garbled("it is longer than any answer"));
        }
        if at > bytes.len() {
            return Ok(missing(at - bytes.len(), values));
        }
    }
    Ok(Extent::Whole(at))
}

/// So many bytes of a value, and as many more values.
fn missing(bytes: usize, values: usize) -> Extent {
    Extent::Missing(bytes + values * SHORTEST)
}

/// What a whole answer says.
///
/// The library's parser takes ten times as long for answers as short as most are; what it has its own ideas of, errors above all, is left
/// to it.
pub(super) fn value(answer: &[u8]) -> RedisResult<Value> {
    let mut rest = answer;
    match simple_value(&mut rest, DEEPEST).filter(|_| rest.is_empty()) {
        Some(value) => Ok(value),
        None => redis::parse_redis_value(answer),
    }
}

/// Arrays within arrays that [`simple_value`] looks into.
const DEEPEST: usize = 4;

fn simple_value(rest: &mut &[u8], deepest: usize) -> Option<Value> {
    let line = line(rest)?;
    let (kind, text) = line.split_first()?;
    *rest = rest.get(line.len() + END.len()..)?;
    match kind {
        b'+' if text == b"OK" => Some(Value::Okay),
        b'+' => Some(Value::SimpleString(std::str::from_utf8(text).ok()?.to_owned())),
        b':' => Some(Value::Int(std::str::from_utf8(text).ok()?.parse().ok()?)),
        b'$' => match length(line, MOST).ok()? {
            None => Some(Value::Nil),
            Some(length) => {
                let string = rest.get(..length)?.to_vec();
                *rest = rest.get(length + END.len()..)?;
                Some(Value::BulkString(string))
            }
        },
        b'*' if deepest > 0 => match length(line, MOST_VALUES).ok()? {
            None => Some(Value::Nil),
            Some(values) => {
                (0..values).map(|_| simple_value(rest, deepest - 1)).collect::<Option<_>>().map(Value::Array)
            }
        },
        _ => None,
    }
}

/// The first line, without its end.
fn line(bytes: &[u8]) -> Option<&[u8]> {
    let longest = bytes.get(..LONGEST_LINE).unwrap_or(bytes);
    let end = longest.windows(END.len()).position(|two| two == END)?;
    bytes.get(..end)
}

/// The number after the first byte of a line; none for -1.
fn length(line: &[u8], most: usize) -> RedisResult<Option<usize>> {
    let text = line.get(1..).and_then(|digits| std::str::from_utf8(digits).ok()).unwrap_or_default();
    match text.parse::<i64>() {
        Ok(-1) => Ok(None),
        Ok(length) => match usize::try_from(length) {
            Ok(length) if length <= most => Ok(Some(length)),
            _ => Err(garbled("it is longer than any answer")),
        },
        Err(_) => Err(garbled("a length in it is no number")),
    }
}

/// The server says what no server says.
pub(super) fn garbled(what: &str) -> RedisError {
    let text = format!("what the server sends cannot be read: {what}");
    io::Error::new(io::ErrorKind::InvalidData, text).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_whole_with_its_last_byte_and_not_before() {
        for answer in [
            "+OK\r\n",
            "-ERR what?\r\n",
            ":-17\r\n",
            "$5\r\nab\r\nc\r\n",
            "$0\r\n\r\n",
            "$-1\r\n",
            "*-1\r\n",
            "*0\r\n",
            "*3\r\n:1\r\n*2\r\n$1\r\nx\r\n+y\r\n$-1\r\n",
            "*2\r\n$2\r\nok\r\n-NOSCRIPT no\r\n",
            "*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n:0\r\n",
            "+a\rb\n\r\n",
        ] {
            let and_more = format!("{answer}+more\r\n");
            assert_eq!(of(and_more.as_bytes()).unwrap(), Extent::Whole(answer.len()), "{answer:?}");
            assert_eq!(
                value(answer.as_bytes()).unwrap(),
                redis::parse_redis_value(answer.as_bytes()).unwrap()
            );
            for length in 0..answer.len() {
                match of(&answer.as_bytes()[..length]).unwrap() {
                    Extent::Missing(bytes) => {
                        assert!((1..=answer.len() - length).contains(&bytes), "{answer:?}")
                    }
                    whole => panic!("{answer:?}, {length}: {whole:?}"),
                }
            }
        }
        assert_eq!(of(b"$100\r\n12345").unwrap(), Extent::Missing(97));
    }

    #[test]
    fn what_is_no_answer_is_said_and_takes_no_memory() {
        let endless = format!("+{}", "x".repeat(LONGEST_LINE));
        for bytes in [
            "x",
            "HTTP/1.1 400\r\n",
            "$x\r\n",
            "$-2\r\n",
            "*99999999999\r\n",
            "$536870913\r\n",
            "$1\r\nabc",
            "*1\r\n$0\r\n+1\r\n",
            &endless,
        ] {
            let error = of(bytes.as_bytes()).unwrap_err().to_string();
            assert!(error.contains("cannot be read"), "{error}");
        }
        let nested = "*16777216\r\n".repeat(3);
        assert!(of(nested.as_bytes()).is_err());
    }
}
