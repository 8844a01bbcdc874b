// SPDX-License-Identifier: GPL-2.0

//! Numbers as people write and read them. The functions that parse can be given to clap.

use std::{
    fmt::Display,
    str::FromStr, //
};

/// The hardest that one can compress.
const LAST_LEVEL: i32 = 19;

/// A number that may be 0.
pub fn parse<T: FromStr>(text: &str) -> Result<T, String> {
    text.parse()
        .map_err(|_| unless_long(text, "it must be a whole number"))
}

/// A number that may not be 0.
pub fn parse_positive<T: FromStr + PartialOrd + From<u8>>(text: &str) -> Result<T, String> {
    text.parse()
        .ok()
        .filter(|number| *number >= T::from(1))
        .ok_or_else(|| unless_long(text, "it must be a whole number, 1 or more"))
}

/// The error of what is no such number, or too large.
fn unless_long(text: &str, otherwise: &str) -> String {
    let is_number = !text.is_empty() && text.bytes().all(|c| c.is_ascii_digit());
    match is_number && !text.bytes().all(|c| c == b'0') {
        true => "it is too large".to_owned(),
        false => otherwise.to_owned(),
    }
}

/// How hard to compress.
pub fn parse_level(text: &str) -> Result<i32, String> {
    text.parse()
        .ok()
        .filter(|level| (1..=LAST_LEVEL).contains(level))
        .ok_or_else(|| format!("it must be a whole number from 1 to {LAST_LEVEL}"))
}

/// How many there are of something, which has this name in the singular.
pub fn count<T: Display + PartialEq + From<u8>>(number: T, name: &str) -> String {
    if number == T::from(1) {
        return format!("1 {name}");
    }
    match name.ends_with('s') {
        true => format!("{number} {name}es"),
        false => format!("{number} {name}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        assert_eq!(parse::<u64>("0"), Ok(0));
        assert_eq!(parse_positive::<usize>("1"), Ok(1));
        assert_eq!(parse_level("19"), Ok(19));
        for text in ["", "-1", "x", "1.5", "99999999999999999999"] {
            assert!(parse::<u64>(text).is_err(), "{text}");
            assert!(parse_positive::<u64>(text).is_err(), "{text}");
            assert!(parse_level(text).is_err(), "{text}");
        }
        assert!(parse_positive::<u32>("0").is_err());
        assert!(parse_level("0").is_err() && parse_level("20").is_err());
    }

    #[test]
    fn one_is_singular() {
        assert_eq!(count(0u64, "generation"), "0 generations");
        assert_eq!(count(1u64, "generation"), "1 generation");
        assert_eq!(count(2usize, "generation"), "2 generations");
        assert_eq!(count(1u32, "pass"), "1 pass");
        assert_eq!(count(12u32, "pass"), "12 passes");
    }
}
