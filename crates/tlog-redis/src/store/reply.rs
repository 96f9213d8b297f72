//! What a script answers, and what it means to the port. Nothing of it is trusted.

use std::io;

use redis::Value;
use tlog_proto::{AggregationNumber, Epoch};
use tlog_store::{LogState, NumberRanges, StoreErrorKind, StoreIdentity};

use crate::layout::{Keys, LAYOUT, parse_identity, parse_members, parse_number, parse_run, parse_starts};

/// A word that says what happened, and what belongs to it.
pub(crate) struct Reply {
    word: String,
    fields: std::vec::IntoIter<Value>,
}

impl Reply {
    /// Fails where it is not a list that begins with a word.
    pub(crate) fn of(value: Value) -> Result<Self, StoreErrorKind> {
        let Value::Array(fields) = value else { return Err(garbled()) };
        let mut fields = fields.into_iter();
        let word = fields.next().and_then(text).ok_or_else(garbled)?;
        Ok(Self { word, fields })
    }

    pub(crate) fn word(&self) -> &str {
        &self.word
    }

    /// The reply, unless it is a refusal. `asked` is the number that was asked for.
    pub(crate) fn granted(mut self, asked: AggregationNumber) -> Result<Self, StoreErrorKind> {
        match self.word.as_str() {
            "none" => Err(StoreErrorKind::NoLog),
            "fenced" => Err(StoreErrorKind::Fenced { promised: Epoch(self.number()?) }),
            "uncommitted" => {
                let committed = AggregationNumber(self.number()?);
                Err(StoreErrorKind::NotCommitted { number: asked, committed })
            }
            "damaged" => {
                let what = self.bytes()?;
                Err(damaged(String::from_utf8_lossy(&what).chars().take(300).collect::<String>()))
            }
            _ => Ok(self),
        }
    }

    /// The next field as bytes, which are not copied.
    pub(crate) fn bytes(&mut self) -> Result<Vec<u8>, StoreErrorKind> {
        match self.fields.next() {
            Some(Value::BulkString(bytes)) => Ok(bytes),
            _ => Err(garbled()),
        }
    }

    /// The next field, whatever it is.
    pub(crate) fn value(&mut self) -> Option<Value> {
        self.fields.next()
    }

    /// The next field as a number.
    pub(crate) fn number(&mut self) -> Result<u64, StoreErrorKind> {
        self.fields.next().and_then(text).as_deref().and_then(parse_number).ok_or_else(garbled)
    }

    /// The next field as a number, none where it is empty.
    pub(crate) fn number_or_none(&mut self) -> Result<Option<u64>, StoreErrorKind> {
        let text = self.fields.next().and_then(text).ok_or_else(garbled)?;
        if text.is_empty() { Ok(None) } else { parse_number(&text).map(Some).ok_or_else(garbled) }
    }

    /// The next field as the identity of the log with these keys.
    pub(crate) fn identity(&mut self, keys: &Keys) -> Result<StoreIdentity, StoreErrorKind> {
        let identity = self.fields.next().and_then(text);
        identity.as_deref().and_then(parse_identity).ok_or_else(|| damaged(format!("{} identity", keys.log)))
    }

    /// How many fields are left.
    pub(crate) fn left(&self) -> usize {
        self.fields.len()
    }

    /// The two fields of `state()` in `head.lua`.
    pub(crate) fn state(mut self, keys: &Keys) -> Result<LogState, StoreErrorKind> {
        let (Some(Value::Array(fields)), Some(Value::Array(runs))) = (self.fields.next(), self.fields.next())
        else {
            return Err(garbled());
        };
        let mut fields = fields.into_iter().map(text);
        let mut field = |name: &'static str| (name, fields.next().flatten());
        let identity = parsed(keys, field("identity"), parse_identity)?;
        let epoch = parsed(keys, field("epoch"), parse_number)?;
        let committed = parsed(keys, field("committed"), parse_number)?;
        let first = parsed(keys, field("first"), |text| parse_number(text).filter(|&first| first > 0))?;
        let run_first = parsed(keys, field("run_first"), parse_number)?;
        let run_last = parsed(keys, field("run_last"), parse_number)?;
        let starts = parsed(keys, field("starts"), parse_starts)?;
        let members = parsed(keys, field("members"), parse_members)?;
        parsed(keys, field("layout"), |text| (text == LAYOUT).then_some(()))?;
        if run_first > run_last || (run_first == 0 && run_last > 0) {
            return Err(damaged(format!("{} run_first", keys.log)));
        }
        let first = AggregationNumber(first);
        let mut held = NumberRanges::new();
        if run_last > 0 {
            held.insert_range(AggregationNumber(run_first)..=AggregationNumber(run_last));
        }
        for run in runs {
            let (first, last) = text(run)
                .as_deref()
                .and_then(parse_run)
                .ok_or_else(|| damaged(format!("{} has what is no run of numbers", keys.held)))?;
            held.insert_range(first..=last);
        }
        // What is below was pruned; if its shards are still there, they only wait to be taken away.
        if let Some(pruned) = first.previous() {
            held.remove_range(AggregationNumber(0)..=pruned);
        }
        Ok(LogState {
            identity: Some(identity),
            epoch: Epoch(epoch),
            starts,
            members,
            committed: AggregationNumber(committed),
            first,
            held,
        })
    }
}

fn parsed<T>(
    keys: &Keys,
    (name, text): (&'static str, Option<String>),
    parse: impl Fn(&str) -> Option<T>,
) -> Result<T, StoreErrorKind> {
    text.as_deref().and_then(parse).ok_or_else(|| damaged(format!("{} {name}", keys.log)))
}

/// The store's records are not what was written; `what` names key and field.
pub(crate) fn damaged(what: impl Into<String>) -> StoreErrorKind {
    StoreErrorKind::Damaged { what: what.into() }
}

/// The server answers something else than what it was asked.
pub(crate) fn garbled() -> StoreErrorKind {
    StoreErrorKind::Unavailable {
        source: io::Error::new(
            io::ErrorKind::InvalidData,
            "the server's answer is not one to what it was asked",
        ),
    }
}

fn text(value: Value) -> Option<String> {
    match value {
        Value::BulkString(bytes) => String::from_utf8(bytes).ok(),
        Value::SimpleString(text) => Some(text),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tlog_proto::VdiskId;

    fn bulk(text: &str) -> Value {
        Value::BulkString(text.as_bytes().to_vec())
    }

    fn state_of(change: impl Fn(&mut Vec<Value>), runs: &[&str]) -> Result<LogState, StoreErrorKind> {
        let identity = "0f".repeat(16);
        let mut fields: Vec<Value> =
            [&identity, "3", "9", "4", "8", "12", "1:1 3:8", "3 0 4 5 -", "1"].map(bulk).into();
        change(&mut fields);
        let runs = runs.iter().map(|run| bulk(run)).collect();
        let reply = Value::Array(vec![bulk("state"), Value::Array(fields), Value::Array(runs)]);
        Reply::of(reply)?.granted(AggregationNumber(0))?.state(&Keys::of(&VdiskId::new("v").unwrap()))
    }

    #[test]
    fn numbers_below_first_are_not_told() {
        let state = state_of(|_| {}, &["1-2", "3-5"]).unwrap();
        let held: Vec<_> = state.held.iter().map(|run| (run.start().0, run.end().0)).collect();
        assert_eq!(held, [(4, 5), (8, 12)]);
        assert_eq!((state.epoch, state.committed.0, state.first.0), (Epoch(3), 9, 4));
        assert_eq!((state.starts.len(), state.members.identities.len()), (2, 1));
    }

    #[test]
    fn a_field_that_is_gone_or_no_value_is_named() {
        let names = [
            "identity",
            "epoch",
            "committed",
            "first",
            "run_first",
            "run_last",
            "starts",
            "members",
            "layout",
        ];
        for (at, name) in names.into_iter().enumerate() {
            for value in
                [Value::Nil, bulk("garbage"), bulk(""), Value::Int(3), Value::BulkString(vec![0xff; 9])]
            {
                if name == "starts" && value == bulk("") {
                    continue;
                }
                let error = state_of(|fields| fields[at] = value.clone(), &[]).unwrap_err();
                assert_eq!(
                    error.to_string(),
                    format!("its records of this log are damaged: tlog:{{v}}:log {name}"),
                    "{value:?}"
                );
            }
        }
        for run in ["", "0-4", "9-3", "x", "1-99999999999999999999"] {
            let error = state_of(|_| {}, &[run]).unwrap_err();
            assert!(error.to_string().contains("tlog:{v}:held"), "{error}");
        }
    }

    #[test]
    fn an_answer_to_something_else_is_an_error() {
        for value in [
            Value::Nil,
            Value::Int(1),
            bulk("ok"),
            Value::Array(vec![]),
            Value::Array(vec![Value::Nil]),
            Value::Array(vec![bulk("fenced")]),
            Value::Array(vec![bulk("fenced"), bulk("x")]),
            Value::Array(vec![bulk("damaged"), Value::Nil]),
        ] {
            let read = Reply::of(value.clone()).and_then(|reply| reply.granted(AggregationNumber(0)));
            assert!(read.is_err(), "{value:?}");
        }
    }
}
