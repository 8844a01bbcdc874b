// SPDX-License-Identifier: GPL-2.0

//! Tokens to resume with.

use proptest::prelude::*;

use crate::{
    error::Error,
    state::StateId,
    stream::ResumeToken, //
};

proptest! {
    #[test]
    fn there_and_back(from: Option<[u8; 32]>, to: [u8; 32], offset: u64) {
        let token = ResumeToken {
            from: from.map(StateId::new),
            to: StateId::new(to),
            offset,
        };
        let text = token.to_string();
        prop_assert!(text.len() <= 104 && !text.starts_with('-'), "{}", text);
        prop_assert_eq!(text.parse::<ResumeToken>().unwrap(), token);
    }

    #[test]
    fn any_text(text in "[A-Za-z0-9_-]{0,120}|.{0,20}") {
        prop_assert!(matches!(text.parse::<ResumeToken>(), Err(Error::Damaged(_))));
    }
}

#[test]
fn any_change_is_refused() {
    let token = ResumeToken {
        from: Some(StateId::new([3; 32])),
        to: StateId::new([5; 32]),
        offset: 1 << 30,
    };
    let text = token.to_string();
    for i in 0..text.len() {
        for other in "AQg_-".chars() {
            let mut changed = text.clone();
            changed.replace_range(i..=i, &other.to_string());
            assert!(
                changed == text || changed.parse::<ResumeToken>().is_err(),
                "{changed}"
            );
        }
        assert!(text[..i].parse::<ResumeToken>().is_err(), "{i}");
    }
    assert!(format!("{text}A").parse::<ResumeToken>().is_err());
}
