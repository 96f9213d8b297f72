//! How single values are written: numbers, durations, sizes, addresses.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

use tlog_config::is_host_name;

/// Why a text is not the value that a setting needs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ValueFault {
    /// Not a whole number in range.
    #[error("it must be a whole number from {min} to {max}")]
    Number {
        /// Smallest.
        min: u64,
        /// Largest.
        max: u64,
    },
    /// Neither true nor false.
    #[error("it must be true or false")]
    Switch,
    /// Not a duration.
    #[error("it must be a duration with a unit, such as 25s, 500ms, 5m or 1h30m")]
    Duration,
    /// A duration of nothing.
    #[error("it must be more than nothing; write a duration such as 25s or 500ms")]
    NoTime,
    /// Not a size.
    #[error("it must be a size above zero, such as 65536, 512KiB, 64MiB or 1GiB")]
    Size,
    /// Not an address to listen on.
    #[error("it must be an address and a port, such as 127.0.0.1:11211, [::1]:11211 or localhost:11211")]
    Address,
    /// A port without an address.
    #[error("it has a port and no address; for every address of this machine write 0.0.0.0{0}")]
    NoHost(String),
    /// Not a store address.
    #[error("{0}")]
    Store(#[from] tlog_config::StoreAddressFault),
    /// Not a source of documents.
    #[error("{0}")]
    Source(#[from] tlog_config::SourceAddressFault),
    /// Not a rule of permission.
    #[error("{0}")]
    Permission(#[from] tlog_server::PermissionRuleError),
    /// Not the name of a host.
    #[error("it must be the name or the address of a host, such as tlog.example.org or 10.0.0.7")]
    HostName,
    /// Not one of a few words.
    #[error("it must be {0}")]
    OneOf(&'static str),
    /// Not a filter of log lines.
    #[error("it must be error, warn, info, debug or trace, or a list such as info,tlog_server=debug")]
    LogFilter,
    /// Nothing where something is needed.
    #[error("it is empty; leave the setting out, or give it a value")]
    Empty,
    /// Another shape of TOML value.
    #[error("it must be {0}")]
    Shape(&'static str),
}

/// A whole number between two bounds, both allowed.
pub(super) fn number(text: &str, min: u64, max: u64) -> Result<u64, ValueFault> {
    let number = text.trim().parse().ok().filter(|number| (min..=max).contains(number));
    number.ok_or(ValueFault::Number { min, max })
}

pub(super) fn switch(text: &str) -> Result<bool, ValueFault> {
    match text.trim() {
        "true" | "yes" | "on" | "1" => Ok(true),
        "false" | "no" | "off" | "0" => Ok(false),
        _ => Err(ValueFault::Switch),
    }
}

/// A duration above zero, always with a unit: a bare number would be seconds to one person and milliseconds to another.
pub(super) fn duration(text: &str) -> Result<Duration, ValueFault> {
    let text = text.trim();
    let duration = match text.strip_suffix('d').map(str::trim_end) {
        // A day is 24 hours here, whatever a clock on a wall does.
        Some(days) if !days.is_empty() && days.bytes().all(|digit| digit.is_ascii_digit()) => {
            let seconds = days.parse().ok().and_then(|days: u64| days.checked_mul(24 * 3600));
            Duration::from_secs(seconds.ok_or(ValueFault::Duration)?)
        }
        _ => {
            let parsed: jiff::SignedDuration = text.parse().map_err(|_| ValueFault::Duration)?;
            Duration::try_from(parsed).map_err(|_| ValueFault::Duration)?
        }
    };
    if duration.is_zero() { Err(ValueFault::NoTime) } else { Ok(duration) }
}

/// A duration, or none for `off`.
pub(super) fn duration_or_off(text: &str) -> Result<Option<Duration>, ValueFault> {
    match text.trim() {
        "off" => Ok(None),
        text => duration(text).map(Some),
    }
}

/// Bytes, above zero. 1 KiB is 1024 bytes, 1 KB is 1000.
pub(super) fn size(text: &str) -> Result<u64, ValueFault> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit: u64 = match unit.trim_start().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kib" | "k" => 1 << 10,
        "mib" | "m" => 1 << 20,
        "gib" | "g" => 1 << 30,
        "tib" | "t" => 1 << 40,
        "kb" => 1000,
        "mb" => 1000 * 1000,
        "gb" => 1000 * 1000 * 1000,
        "tb" => 1000 * 1000 * 1000 * 1000,
        _ => return Err(ValueFault::Size),
    };
    let number: u64 = number.parse().map_err(|_| ValueFault::Size)?;
    number.checked_mul(unit).filter(|&bytes| bytes > 0).ok_or(ValueFault::Size)
}

/// A number of bytes above zero, as a person writes it: `16MiB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size(pub u64);

impl FromStr for Size {
    type Err = ValueFault;

    fn from_str(text: &str) -> Result<Self, ValueFault> {
        size(text).map(Self)
    }
}

/// A duration above zero, as a person writes it: `2m`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimeSpan(pub Duration);

impl FromStr for TimeSpan {
    type Err = ValueFault;

    fn from_str(text: &str) -> Result<Self, ValueFault> {
        duration(text).map(Self)
    }
}

/// Bytes as a person reads them.
pub fn show_size(bytes: u64) -> String {
    const UNITS: [(u64, &str); 4] = [(1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match UNITS.iter().find(|(unit, _)| bytes >= *unit) {
        None => format!("{bytes} B"),
        Some((unit, name)) if bytes.is_multiple_of(*unit) => format!("{} {name}", bytes / unit),
        Some((unit, name)) => format!("{:.1} {name}", bytes as f64 / *unit as f64),
    }
}

/// Where a server listens: an IP address or a name, and a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenAddress {
    host: String,
    port: u16,
}

impl ListenAddress {
    /// Whether only this machine reaches it.
    pub fn is_loopback(&self) -> bool {
        match self.host.parse::<IpAddr>() {
            Ok(ip) => ip.is_loopback(),
            Err(_) => self.host == "localhost",
        }
    }

    /// What a client on the same machine connects to.
    pub fn to_connect(&self) -> ListenAddress {
        let host = match self.host.parse::<IpAddr>() {
            Ok(ip) if ip.is_unspecified() && ip.is_ipv4() => Ipv4Addr::LOCALHOST.to_string(),
            Ok(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.to_string(),
            _ => self.host.clone(),
        };
        ListenAddress { host, port: self.port }
    }

    /// Host and port, as `TcpListener::bind` and `TcpStream::connect` take them.
    pub fn pair(&self) -> (&str, u16) {
        (&self.host, self.port)
    }
}

impl FromStr for ListenAddress {
    type Err = ValueFault;

    fn from_str(text: &str) -> Result<Self, ValueFault> {
        let text = text.trim();
        if let Ok(address) = text.parse::<SocketAddr>() {
            return Ok(Self { host: address.ip().to_string(), port: address.port() });
        }
        let (host, port) = text.rsplit_once(':').ok_or(ValueFault::Address)?;
        let port = port.parse().map_err(|_| ValueFault::Address)?;
        if host.is_empty() {
            return Err(ValueFault::NoHost(text.to_owned()));
        }
        if !is_host_name(host) {
            return Err(ValueFault::Address);
        }
        Ok(Self { host: host.to_owned(), port })
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port } = self;
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn durations_need_a_unit_and_are_more_than_nothing() {
        for (text, millis) in [
            ("25s", 25_000),
            ("500ms", 500),
            ("1m30s", 90_000),
            (" 2h ", 7_200_000),
            ("1.5s", 1500),
            ("30d", 2_592_000_000),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in [
            "",
            "25",
            "-1s",
            "s",
            "25 parsecs",
            "1e3s",
            "99999999999999999999s",
            "d",
            "-1d",
            "99999999999999999999d",
        ] {
            assert_eq!(duration(text), Err(ValueFault::Duration), "{text}");
        }
        assert_eq!(duration("0s"), Err(ValueFault::NoTime));
        assert_eq!(duration_or_off("off"), Ok(None));
        assert_eq!(duration_or_off("1s"), Ok(Some(Duration::from_secs(1))));
        assert_eq!(duration_or_off("0s"), Err(ValueFault::NoTime));
    }

    #[test]
    fn sizes_are_bytes_or_have_a_unit() {
        for (text, bytes) in [
            ("1", 1),
            ("64MiB", 64 << 20),
            ("64 MiB", 64 << 20),
            ("1gib", 1 << 30),
            ("3KB", 3000),
            ("7B", 7),
            ("2k", 2048),
        ] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for text in
            ["", "0", "0MiB", "-1", "1.5MiB", "MiB", "12 parsecs", "99999999999999999999", "99999999999TiB"]
        {
            assert_eq!(size(text), Err(ValueFault::Size), "{text}");
        }
        assert_eq!(show_size(0), "0 B");
        assert_eq!(show_size(1 << 26), "64 MiB");
        assert_eq!(show_size(1536), "1.5 KiB");
    }

    #[test]
    fn an_address_to_listen_on_has_a_host_and_a_port() {
        let check = |text: &str, shown: &str, loopback: bool, connect: &str| {
            let address: ListenAddress = text.parse().unwrap();
            assert_eq!(address.to_string(), shown);
            assert_eq!(address.is_loopback(), loopback, "{text}");
            assert_eq!(address.to_connect().to_string(), connect);
            assert_eq!(shown.parse::<ListenAddress>(), Ok(address));
        };
        check("127.0.0.1:11211", "127.0.0.1:11211", true, "127.0.0.1:11211");
        check("127.8.0.1:0", "127.8.0.1:0", true, "127.8.0.1:0");
        check("[::1]:11211", "[::1]:11211", true, "[::1]:11211");
        check("[::]:11211", "[::]:11211", false, "[::1]:11211");
        check("0.0.0.0:1", "0.0.0.0:1", false, "127.0.0.1:1");
        check("localhost:1", "localhost:1", true, "localhost:1");
        check("tlog-1.example.org:65535", "tlog-1.example.org:65535", false, "tlog-1.example.org:65535");
        for bad in [
            "",
            "127.0.0.1",
            "127.0.0.1:65536",
            "127.0.0.256:1",
            "1:2:3",
            "a b:1",
            "host:",
            "::1",
            "-a:1",
            "1.2:3",
        ] {
            assert_eq!(bad.parse::<ListenAddress>(), Err(ValueFault::Address), "{bad}");
        }
        assert_eq!(":11211".parse::<ListenAddress>(), Err(ValueFault::NoHost(":11211".into())));
    }

    proptest! {
        #[test]
        fn no_text_makes_a_parser_panic(text in ".{0,40}") {
            let _ = (duration(&text), size(&text), text.parse::<ListenAddress>(), number(&text, 1, 5), switch(&text));
        }

        #[test]
        fn a_size_in_whole_units_is_read_back(number in 1u64..1024, unit in 0usize..5) {
            let bytes = number << (10 * unit);
            prop_assert_eq!(size(&show_size(bytes)), Ok(bytes));
        }
    }
}
