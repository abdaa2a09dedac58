# SPDX-License-Identifier: Apache-2.0
"""What the frame encoder learns of the face, from a teacher that knows every face."""
