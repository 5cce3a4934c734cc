//! Quantities with their unit in the type. Text forms are binary: `256M` is 256 MiB, `2G` is 2048 MiB.

use serde::{Deserialize, Serialize};
use std::{fmt, num::NonZeroU16, str::FromStr};

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSize {
    #[error("`{text}` is not a size: write a whole number with a unit, such as `256M` or `2G`")]
    Syntax { text: String },
    #[error("{what} of {given} is below the minimum of {min}")]
    TooSmall { what: &'static str, given: String, min: String },
    #[error("{what} of {given} is above the maximum of {max}")]
    TooLarge { what: &'static str, given: String, max: String },
}

/// A number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default)]
#[serde(transparent)]
pub struct Bytes(pub u64);

impl FromStr for Bytes {
    type Err = InvalidSize;
    /// `N`, `NK`, `NM`, `NG`, `NT`, optionally followed by `iB` or `B`; binary units.
    fn from_str(text: &str) -> Result<Self, InvalidSize> {
        let syntax = || InvalidSize::Syntax { text: text.into() };
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let number: u64 = text[..digits].parse().map_err(|_| syntax())?;
        let shift = match &text[digits..] {
            "" | "B" => 0,
            "K" | "k" | "KiB" | "KB" => 10,
            "M" | "m" | "MiB" | "MB" => 20,
            "G" | "g" | "GiB" | "GB" => 30,
            "T" | "t" | "TiB" | "TB" => 40,
            _ => return Err(syntax()),
        };
        number.checked_mul(1 << shift).map(Self).ok_or_else(syntax)
    }
}
impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (shift, unit) in [(40, "T"), (30, "G"), (20, "M"), (10, "K")] {
            if self.0 >= 1 << shift && self.0.is_multiple_of(1 << shift) {
                return write!(f, "{}{unit}", self.0 >> shift);
            }
        }
        write!(f, "{}", self.0)
    }
}

macro_rules! mebibytes {
    ($(#[$doc:meta])* $name:ident, $what:literal, $min:expr, $max:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "u64", into = "u64")]
        pub struct $name(u32);

        impl $name {
            pub const MIN: Self = Self($min);
            pub const MAX: Self = Self($max);
            pub const fn mib(self) -> u32 { self.0 }
            pub const fn bytes(self) -> Bytes { Bytes((self.0 as u64) << 20) }
            pub fn from_mib(mib: u64) -> Result<Self, InvalidSize> {
                let text = |mib: u64| Bytes(mib.saturating_mul(1 << 20)).to_string();
                if mib < u64::from($min as u32) {
                    return Err(InvalidSize::TooSmall { what: $what, given: text(mib), min: text($min) });
                }
                if mib > u64::from($max as u32) {
                    return Err(InvalidSize::TooLarge { what: $what, given: text(mib), max: text($max) });
                }
                Ok(Self(mib as u32))
            }
        }
        impl FromStr for $name {
            type Err = InvalidSize;
            fn from_str(text: &str) -> Result<Self, InvalidSize> {
                let bytes: Bytes = text.parse()?;
                if bytes.0 != 0 && bytes.0 < 1 << 20 {
                    return Err(InvalidSize::TooSmall {
                        what: $what, given: bytes.to_string(), min: Self::MIN.to_string(),
                    });
                }
                if !bytes.0.is_multiple_of(1 << 20) {
                    return Err(InvalidSize::Syntax { text: text.into() });
                }
                Self::from_mib(bytes.0 >> 20)
            }
        }
        impl TryFrom<u64> for $name {
            type Error = InvalidSize;
            fn try_from(mib: u64) -> Result<Self, InvalidSize> { Self::from_mib(mib) }
        }
        impl From<$name> for u64 {
            fn from(size: $name) -> u64 { size.0.into() }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { self.bytes().fmt(f) }
        }
    };
}

mebibytes!(/// Guest memory, in MiB. The floor is what the stock kernel and the agent need to boot.
    MemMib, "memory", 128, 1024 * 1024);
mebibytes!(/// Size of the data disk, in MiB.
    DiskMib, "disk", 64, 64 * 1024 * 1024);

/// Number of virtual CPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CpuCount(NonZeroU16);

impl CpuCount {
    pub const ONE: Self = Self(NonZeroU16::MIN);
    pub const MAX: u16 = 64;
    pub fn new(count: u16) -> Result<Self, InvalidSize> {
        match NonZeroU16::new(count) {
            None => Err(InvalidSize::TooSmall { what: "cpus", given: "0".into(), min: "1".into() }),
            Some(n) if count <= Self::MAX => Ok(Self(n)),
            Some(_) => Err(InvalidSize::TooLarge {
                what: "cpus",
                given: count.to_string(),
                max: Self::MAX.to_string(),
            }),
        }
    }
    pub const fn get(self) -> u16 {
        self.0.get()
    }
}
impl FromStr for CpuCount {
    type Err = InvalidSize;
    fn from_str(text: &str) -> Result<Self, InvalidSize> {
        let count = text.parse().map_err(|_| InvalidSize::Syntax { text: text.into() })?;
        Self::new(count)
    }
}
impl fmt::Display for CpuCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_parse_print_and_refuse_absurd_values() {
        assert_eq!("256M".parse::<MemMib>().unwrap().mib(), 256);
        assert_eq!("2G".parse::<MemMib>().unwrap().to_string(), "2G");
        assert_eq!("512MiB".parse::<MemMib>().unwrap().bytes(), Bytes(512 << 20));
        for bad in
            ["", "M", "-1M", "1.5G", "0", "0M", "1M", "99999999T", "256X", "１M", "100000000G", "300000001"]
        {
            assert!(bad.parse::<MemMib>().is_err(), "{bad:?} must be refused");
        }
        assert!(matches!("0".parse::<MemMib>(), Err(InvalidSize::TooSmall { .. })));
        assert!(CpuCount::new(0).is_err());
        assert!(CpuCount::new(65).is_err());
    }
}
