//! stub
use schemas::DatasetIdentity;
use crate::SourceError;
/// x
pub struct ImageSource {}
impl ImageSource {
    /// x
    pub fn open(_spec: &str) -> Result<Self, SourceError> { todo!() }
    /// x
    pub fn limit(self, _samples: u64) -> Self { todo!() }
    /// x
    pub fn kind(&self) -> &'static str { todo!() }
    /// x
    pub fn len(&self) -> usize { todo!() }
    /// x
    pub fn is_empty(&self) -> bool { self.len() == 0 }
    /// x
    pub fn key(&self, _index: usize) -> &str { todo!() }
    /// x
    pub fn label(&self, _index: usize) -> Option<i32> { todo!() }
    /// x
    pub fn label_names(&self) -> &[String] { todo!() }
    /// x
    pub fn identity(&self) -> DatasetIdentity { todo!() }
    /// x
    pub fn read(&self, _index: usize) -> Result<Vec<u8>, SourceError> { todo!() }
    /// x
    pub fn find(&self, _key: &str) -> Option<usize> { todo!() }
}
