// torch's ProcessGroupGloo.hpp includes Gloo's headers, which libtorch does not ship. These stand in for them: our code holds pointers to
// Gloo's objects and never looks inside.
#pragma once
