//! Lists in pages.
//!
//! A list without `limit` is whole. With it, `next_cursor` of an answer is `cursor` of the next request, until there is
//! none. What comes and goes meanwhile may be seen or not; what stays is seen exactly once.

use super::InvalidField;
use serde::{Deserialize, Serialize};
use utoipa::IntoParams;

/// Most entries of one page.
pub const MAX_PAGE: u32 = 1000;

/// Which part of a list.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct PageQuery {
    /// At most so many, 1 to 1000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
    /// `next_cursor` of the page before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
}

impl PageQuery {
    /// Refuses a limit that allows nothing, or too much.
    pub fn limit(&self) -> Result<Option<usize>, InvalidField> {
        match self.limit {
            Some(limit) if !(1..=MAX_PAGE).contains(&limit) => {
                Err(InvalidField::new("limit", format!("{limit} is not between 1 and {MAX_PAGE}")))
            }
            limit => Ok(limit.map(|limit| limit as usize)),
        }
    }

    /// The page of `whole` that was asked for, and the cursor of the next one. `key` names each entry among the others.
    pub fn of<T>(
        &self,
        mut whole: Vec<T>,
        key: impl Fn(&T) -> String,
    ) -> Result<(Vec<T>, Option<String>), InvalidField> {
        let limit = self.limit()?;
        if let Some(cursor) = &self.cursor {
            let after = match whole.iter().position(|entry| key(entry) == *cursor) {
                Some(last) => last + 1,
                // Where keys are in order, what has gone still has its place among them.
                None if whole.is_sorted_by_key(&key) => whole.partition_point(|entry| key(entry) <= *cursor),
                None => {
                    let problem = format!("`{cursor:.80}` is no longer in the list; begin it anew");
                    return Err(InvalidField::new("cursor", problem));
                }
            };
            whole.drain(..after);
        }
        let Some(limit) = limit.filter(|limit| *limit < whole.len()) else { return Ok((whole, None)) };
        whole.truncate(limit);
        let next = whole.last().map(key);
        Ok((whole, next))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(limit: Option<u32>, cursor: Option<&str>) -> Result<(Vec<u32>, Option<String>), InvalidField> {
        let query = PageQuery { limit, cursor: cursor.map(Into::into) };
        query.of(vec![1, 2, 3, 4, 5], u32::to_string)
    }

    #[test]
    fn pages_put_together_are_the_list_and_the_last_has_no_cursor() {
        assert_eq!(page(None, None).unwrap(), (vec![1, 2, 3, 4, 5], None));
        for limit in 1..=6 {
            let (mut seen, mut cursor) = (Vec::new(), None);
            loop {
                let (some, next) = page(Some(limit), cursor.as_deref()).unwrap();
                assert!(some.len() <= limit as usize && !some.is_empty());
                seen.extend(some);
                cursor = next;
                if cursor.is_none() {
                    break;
                }
            }
            assert_eq!(seen, [1, 2, 3, 4, 5], "limit {limit}");
        }
        assert_eq!(page(None, Some("4")).unwrap(), (vec![5], None));
    }

    #[test]
    fn a_limit_of_nothing_or_too_much_and_a_lost_cursor_are_refused_by_name() {
        assert_eq!(page(Some(0), None).unwrap_err().field, "limit");
        assert_eq!(page(Some(MAX_PAGE + 1), None).unwrap_err().field, "limit");
        let unsorted = PageQuery { limit: None, cursor: Some("9".into()) };
        assert_eq!(unsorted.of(vec![2, 1], u32::to_string).unwrap_err().field, "cursor");
    }

    #[test]
    fn what_has_gone_from_an_ordered_list_still_has_its_place() {
        let query = PageQuery { limit: Some(1), cursor: Some("3".into()) };
        assert_eq!(query.of(vec![1, 2, 4, 5], u32::to_string).unwrap(), (vec![4], Some("4".into())));
    }
}
